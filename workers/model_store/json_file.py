"""The JSON files of a model folder: one object each."""

import json
from pathlib import Path
from typing import Any

from headrace.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of a model folder that holds one JSON object.

    Raises:
        ModelError: it is missing or damaged.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent} has no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{path} is not a JSON object")
    return fields


def read_json_if_there(path: Path) -> dict[str, Any]:
    """The same of a file that need not be there; without it, an empty object.

    Raises:
        ModelError: it is damaged.
    """
    return read_json(path) if path.is_file() else {}
