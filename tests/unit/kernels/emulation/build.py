"""Compiles a kernel's own source for the CPU, its hardware's instructions replaced by the headers beside this file."""

import ctypes
import functools
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from headrace.kernels.build import CUDA_DIR, Macro
from headrace.kernels.prefill_shape import Block

HERE = Path(__file__).parent
#: What all attention to tiles of keys is made of.
_TILES = ("attention_exact.cuh", "attention_fragments.cuh", "head_rows.cuh", "head_tiles.cuh", "panels.cuh")
#: What products of rows by the bulk copy engine are made of.
_PRODUCTS = ("meeting.cuh", "panel_step.cuh", "logistic.cuh", "quad.cuh", "head_rows.cuh", "panels.cuh")
# -O1: what -O2 saves of the running is less than it takes g++.
_FLAGS = ("-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-fno-strict-aliasing", "-fPIC", "-w")
_DYNAMIC = re.compile(r"extern __shared__ __align__\([^)]*\) unsigned char memory\[\];")


class Map(ctypes.Structure):
    """A tensor map of ``tensor_copy.cuh`` here."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("rows", ctypes.c_longlong),
        ("columns", ctypes.c_longlong),
        ("pitch_bytes", ctypes.c_longlong),
        ("box_rows", ctypes.c_longlong),
    )

    @classmethod
    def of(cls, x: Tensor, box_rows: int) -> "Map":
        """The map of ``x [rows, columns]``, 16 bits each, for boxes of so many rows."""
        return cls(x.data_ptr(), *x.shape, x.stride(0) * 2, box_rows)


def compiler() -> str | None:
    """Where g++ is; None: nowhere."""
    return shutil.which("g++")


def build_prefill(block: Block, dtype: torch.dtype, head_dim: int, folder: Path) -> ctypes.CDLL:
    """Compile prefill attention in an empty folder."""
    return _build(
        "prefill", ("prefill_*.cu*", "plan.cuh", "rotate_pair.cuh", *_TILES), block.macros(dtype, head_dim), folder
    )


def build_prefill_ring(macros: Mapping[str, Macro], folder: Path) -> ctypes.CDLL:
    """Compile prefill attention by the bulk copy engine in an empty folder."""
    parts = ("prefill_*.cu*", "plan.cuh", "rotate_pair.cuh", "quad.cuh", *_TILES)
    return _build("prefill_ring", parts, macros, folder)


def build_decode_plan(folder: Path) -> ctypes.CDLL:
    """Compile what shares decode attention's work out, in an empty folder."""
    return _build("decode_plan", ("decode_plan.cu", "decode_tiles.cuh", "plan.cuh"), {}, folder)


def build_decode_settle(macros: Mapping[str, Macro], folder: Path) -> ctypes.CDLL:
    """Compile the end of decode attention's pieces in an empty folder."""
    names = ("settle", "walk", "fragments", "tiles")
    return _build("decode_settle", ("head_rows.cuh", *(f"decode_{name}.cuh" for name in names)), macros, folder)


def build_encoder(block: Block, dtype: torch.dtype, head_size: int, head_dim: int, folder: Path) -> ctypes.CDLL:
    """Compile encoders' attention in an empty folder."""
    macros = {"HEAD_SIZE": head_size, **block.macros(dtype, head_dim)}
    return _build("encoder", ("encoder_attention.cu", "encoder_*.cuh", *_TILES), macros, folder)


def build_encoder_embedding(macros: Mapping[str, Macro], folder: Path) -> ctypes.CDLL:
    """Compile what makes an encoder's first layer's input in an empty folder."""
    return _build("encoder_embedding", ("encoder_embedding.cu", "rows.cuh"), macros, folder)


def build_pooling(macros: Mapping[str, Macro], folder: Path) -> ctypes.CDLL:
    """Compile pooling in an empty folder."""
    return _build("pooling", ("pooling.cu",), macros, folder)


def build_sampling(macros: Mapping[str, Macro], folder: Path) -> ctypes.CDLL:
    """Compile sampling in an empty folder."""
    names = ("sampling.cu", "search.cu", "sampling", "ranking", "shortlist", "threshold", "choice", "drawn")
    return _build("sampling", [name if "." in name else f"{name}.cuh" for name in names], macros, folder)


def build_fixed_product(macros: Mapping[str, Macro], folder: Path) -> ctypes.CDLL:
    """Compile the fixed product in an empty folder."""
    return _build("fixed_product", ("fixed_product.cu",), macros, folder)


def build_thin_product(macros: Mapping[str, Macro], folder: Path) -> ctypes.CDLL:
    """Compile the thin product in an empty folder."""
    return _build("thin_product", ("thin_*.cu*", "logistic.cuh"), macros, folder)


def build_middle_product(macros: Mapping[str, Macro], folder: Path) -> ctypes.CDLL:
    """Compile the middle product in an empty folder."""
    return _build("middle_product", ("middle_*.cu*", *_PRODUCTS), macros, folder)


def build_wide_product(macros: Mapping[str, Macro], folder: Path) -> ctypes.CDLL:
    """Compile the wide product in an empty folder."""
    return _build("wide_product", ("wide_*.cu*", "middle_result.cuh", *_PRODUCTS), macros, folder)


def _build(name: str, sources: Iterable[str], macros: Mapping[str, Macro], folder: Path) -> ctypes.CDLL:
    for pattern in sources:
        for path in CUDA_DIR.glob(pattern):
            text = _DYNAMIC.sub("unsigned char* const memory = emulated::memory;", path.read_text())
            (folder / path.name).write_text(text)
    library = folder / f"{name}.so"
    includes = [f"-I{each}" for each in (_compiled_ahead(folder.parent), HERE, folder)]
    defines = [f"-D{macro}={value}" for macro, value in macros.items()]
    # What is compiled ahead must be included first, and by no other header.
    command = ["g++", *_FLAGS, "-shared", *includes, "-include", "emulated.h", *defines]
    subprocess.run([*command, str(HERE / f"{name}.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


@functools.cache
def _compiled_ahead(folder: Path) -> Path:
    """Where g++ finds ``emulated.h`` compiled: reading what it includes takes g++ as long as a small kernel does."""
    where = folder / "compiled_ahead"
    where.mkdir()
    header, compiled = HERE / "emulated.h", where / "emulated.h.gch"
    subprocess.run(["g++", *_FLAGS, "-x", "c++-header", str(header), "-o", str(compiled)], check=True)
    return where


def pointer(x: Tensor) -> ctypes.c_void_p:
    """Where a tensor lies; the caller keeps it alive."""
    return ctypes.c_void_p(x.data_ptr())
