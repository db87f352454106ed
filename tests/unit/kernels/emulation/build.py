"""Compiles a kernel's own source for the CPU, its hardware's instructions replaced by the headers beside this file."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from headrace.kernels.build import CUDA_DIR
from headrace.kernels.prefill_shape import Block

HERE = Path(__file__).parent
_DYNAMIC = "extern __shared__ __align__(WARPGROUPS ? 1024 : 128) unsigned char memory[];"


def compiler() -> str | None:
    """Where g++ is; None: nowhere."""
    return shutil.which("g++")


def build_prefill(block: Block, dtype: torch.dtype, head_dim: int, folder: Path) -> ctypes.CDLL:
    """Compile prefill attention in an empty folder."""
    for pattern in ("prefill_*.cu*", "head_rows.cuh", "panels.cuh", "plan.cuh"):
        for path in CUDA_DIR.glob(pattern):
            text = path.read_text().replace(_DYNAMIC, "unsigned char* const memory = emulated::memory;")
            (folder / path.name).write_text(text)
    for path in [*HERE.glob("*.cuh"), *HERE.glob("*.h"), *HERE.glob("*.cpp")]:
        shutil.copy(path, folder)
    library, macros = folder / "prefill.so", block.macros(dtype, head_dim)
    flags = ["-std=c++17", "-O2", "-fno-strict-aliasing", "-fPIC", "-shared", "-w"]
    defines = [f"-D{name}={value}" for name, value in macros.items()]
    command = ["g++", *flags, *defines, str(folder / "prefill.cpp"), "-o", str(library)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def pointer(x: Tensor) -> ctypes.c_void_p:
    """Where a tensor lies; the caller keeps it alive."""
    return ctypes.c_void_p(x.data_ptr())
