"""Where settings come from, and how a child process is given its parent's.

A setting comes from the first of: the command line, an environment variable ``HEADRACE_<NAME>``, the file named by
``HEADRACE_CONFIG`` (else ``headrace.toml`` in the working directory), its default.
"""

import json
import os
import tomllib
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from headrace.environment import ENV_PREFIX, check_environment
from headrace.errors import ConfigurationError

_FILE_VARIABLE = ENV_PREFIX + "CONFIG"
_DEFAULT_FILE = "headrace.toml"


class SourcedSettings(BaseSettings):
    """Frozen settings, whichever there are."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, then environment, then file."""
        named = os.environ.get(_FILE_VARIABLE)
        path = Path(named) if named else Path(_DEFAULT_FILE)
        if named and not path.is_file():
            raise ConfigurationError(f"{_FILE_VARIABLE} names {path}, which is not a file")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=path)

    @classmethod
    def load(cls, **given: object) -> Self:
        """Build the settings; ``given`` are those of the command line, None meaning not given.

        Raises:
            ConfigurationError: a value is of the wrong type or out of range; every culprit is named. Or the environment
                has a name that is no setting's.
        """
        check_environment(os.environ, {name: field.annotation for name, field in cls.model_fields.items()})
        explicit: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        try:
            return cls(**explicit)
        except ValidationError as error:
            culprits = "; ".join(
                f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()
            )
            raise ConfigurationError(f"settings: {culprits}") from error
        except (tomllib.TOMLDecodeError, ValueError) as error:
            raise ConfigurationError(f"settings: {error}") from error

    def to_environ(self) -> dict[str, str]:
        """The environment from which a child process loads these very settings.

        An environment, because a process list shows command lines to every user of a machine.
        """
        values = self.model_dump(mode="json", exclude_none=True)
        own = {
            ENV_PREFIX + name.upper(): value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }
        others = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
        return others | own
