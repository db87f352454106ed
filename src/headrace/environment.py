"""Names ``HEADRACE_…`` in the environment: what is refused before they become settings. Pure.

pydantic passes over a name that it does not know. That is right for an environment that others fill, and wrong for
names that begin like these: nobody would obey a misspelt setting.
"""

import json
from collections.abc import Mapping
from typing import Any, get_origin

from headrace.errors import ConfigurationError
from headrace.nearest import nearest

ENV_PREFIX = "HEADRACE_"

#: Read by others than the settings: who reads them.
NOT_SETTINGS: Mapping[str, str] = {
    "HEADRACE_CONFIG": "names the file of settings",
    "HEADRACE_DEBUG": "the option --debug",
    "HEADRACE_FAULT": "headrace.faults",
    "HEADRACE_ENGINE": "an engine process, from its worker",
    "HEADRACE_ENGINE_SOCKET": "the same",
    "HEADRACE_PYTHON": "scripts/setup",
    "HEADRACE_SOAK_REQUESTS": "the tests",
    "HEADRACE_BROKER_MAXMEMORY": "docker-compose.yml",
    "HEADRACE_BROKER_APPENDFSYNC": "docker-compose.yml",
    "HEADRACE_STOP_GRACE": "docker-compose.yml",
}


def check_environment(environ: Mapping[str, str], kinds: Mapping[str, Any]) -> None:
    """Refuse names that are no setting, and lists and objects that are no JSON.

    Args:
        environ: the process's.
        kinds: settings by their names, and what type each is of.

    Raises:
        ConfigurationError: there are any; the message says what was meant, or what is wanted.
    """
    settings = {ENV_PREFIX + name.upper(): kind for name, kind in kinds.items()}
    for variable in sorted(environ):
        name = variable.upper()  # as pydantic reads them
        if not name.startswith(ENV_PREFIX) or name in NOT_SETTINGS:
            continue
        if name not in settings:
            known = sorted(known_name.removeprefix(ENV_PREFIX) for known_name in (*settings, *NOT_SETTINGS))
            hint = nearest(name.removeprefix(ENV_PREFIX), known)
            raise ConfigurationError(f"{variable} in the environment: there is no such setting; {hint}")
        _check_json(variable, environ[variable], get_origin(settings[name]))


def _check_json(variable: str, value: str, kind: object) -> None:
    example = {dict: '{"NAME": 1}', frozenset: '["NAME", "NAME"]'}.get(kind)  # type: ignore[call-overload]
    if example is None:
        return
    try:
        json.loads(value)
    except ValueError as error:
        raise ConfigurationError(f"{variable}={value!r}: must be JSON, as {example}") from error
