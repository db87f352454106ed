"""Where a machine keeps what batches cost it, so that only a first start measures."""

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from headrace import __version__
from headrace.errors import DecodeError
from headrace.workers.costs.table import CostTable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CostKey:
    """All that a cost depends on.

    Attributes:
        device: of the products: the CPU's model and how many threads, or the GPU's name.
        revision: of the model.
        dtype: of weights and activations.
        page_size: tokens of a page.
        step_tokens: tokens of a step at most.
        version: of Headrace, whose next release may compute differently.
    """

    device: str
    revision: str
    dtype: str
    page_size: int
    step_tokens: int
    version: str = __version__

    @property
    def worker_class(self) -> str:
        """What the key ``cost`` calls workers like this one: all that tells machines of one fleet apart."""
        return f"{self.device}/{self.revision}/{self.dtype}"


class CostFile:
    """One file of a folder; who names another key reads another file.

    Args:
        folder: made where it is missing.
        key: of the costs.
    """

    def __init__(self, folder: Path, key: CostKey) -> None:
        self._key = asdict(key)
        digest = hashlib.sha256(json.dumps(self._key, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"{digest[:24]}.json"

    def read(self) -> CostTable | None:
        """The table; None if there is none, or none that can be read, of which the log then tells."""
        try:
            content = json.loads(self.path.read_text())
            if content["key"] != self._key:
                raise DecodeError("it belongs to another machine or model")
            return CostTable.decode(bytes.fromhex(content["table"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, DecodeError) as error:
            log.warning("%s is of no use, costs are measured again: %s", self.path, error)
            return None

    def write(self, table: CostTable) -> None:
        """Replace the file in one step. That it cannot be written costs only the next start's time: the log tells."""
        content = json.dumps({"key": self._key, "table": table.encode().hex()})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".costs-")
            try:
                with os.fdopen(handle, "w") as file:
                    file.write(content)
                os.replace(name, self.path)
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            log.warning("costs cannot be kept, the next start measures again: %s", error)
