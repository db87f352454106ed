"""From a CUDA file to machine code: nvcc through PyCUDA, and a cache on disk that many processes may share.

Sources are the ``.cu`` files in ``cuda/``, specialised by macros (``-DHEAD_DIM=128``). This module knows no device and
launches nothing; ``launch`` calls it. PyCUDA's own cache is switched off: it writes its files in place, so that a
second process may read half of one.
"""

import fcntl
import functools
import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from headrace.errors import ConfigurationError, KernelError

logger = logging.getLogger(__name__)

CUDA_DIR = Path(__file__).resolve().parent / "cuda"

#: C++ names of the element types that kernels are specialised for.
C_TYPES = {torch.float32: "float", torch.float16: "__half", torch.bfloat16: "__nv_bfloat16"}

Macro = str | int

# No fast maths: where an approximation will do, a kernel asks for it by name.
_FLAGS = ("-std=c++17", "-O3", "-lineinfo")
_DIGEST_BYTES = hashlib.sha256().digest_size
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Target:
    """What machine code depends on.

    Attributes:
        source: name of a file in ``cuda/``, without its ending.
        arch: ``sm_80``, ``sm_90a`` and so on.
        defines: macros and their values, sorted by name.
    """

    source: str
    arch: str
    defines: tuple[tuple[str, Macro], ...]

    @classmethod
    def of(cls, source: str, arch: str, defines: Mapping[str, Macro]) -> "Target":
        """Make a target from macros in any order."""
        return cls(source, arch, tuple(sorted(defines.items())))

    @property
    def flags(self) -> list[str]:
        """What nvcc is called with, beside paths and the architecture."""
        return [*_FLAGS, *(f"-D{name}={value}" for name, value in self.defines)]


def architecture(capability: tuple[int, int]) -> str:
    """Name the architecture to compile for.

    Raises:
        ConfigurationError: the GPU is older than Ampere, whose asynchronous copies and bf16 the kernels use.
    """
    major, minor = capability
    if capability < (8, 0):
        raise ConfigurationError(
            f"the kernels need a GPU of compute capability 8.0 or newer; this one has {major}.{minor}"
        )
    # 90a: Hopper with the instructions that no later architecture runs.
    return "sm_90a" if capability == (9, 0) else f"sm_{major}{minor}"


def cubin(target: Target, cache_dir: Path | None = None) -> bytes:
    """Return a target's machine code, from the cache or from nvcc; one process compiles it, others wait for that one.

    Args:
        target: what to compile.
        cache_dir: where machine code is kept; default: ``default_cache_dir()``.

    Raises:
        ConfigurationError: nvcc or PyCUDA is not installed, or the cache's folder cannot be written.
        KernelError: nvcc refused the source; its message is in the error's.
    """
    cache_dir = default_cache_dir() if cache_dir is None else cache_dir
    path = cache_dir / f"{target.source}-{_key(target)}.cubin"
    found = _read(path)
    if found is not None:
        return found
    with _locked(path.with_suffix(".lock")):
        found = _read(path)
        if found is None:
            found = _compile(target)
            _write(path, found)
    return found


def default_cache_dir() -> Path:
    """Return ``kernels`` in $HEADRACE_CACHE_DIR, else in $XDG_CACHE_HOME/headrace, else in ~/.cache/headrace."""
    if chosen := os.environ.get("HEADRACE_CACHE_DIR"):
        return Path(chosen).expanduser().absolute() / "kernels"
    base = os.environ.get("XDG_CACHE_HOME")
    home = Path(base).expanduser().absolute() if base else Path.home() / ".cache"
    return home / "headrace" / "kernels"


@functools.cache
def nvcc_version() -> str:
    """Say which nvcc compiles.

    Raises:
        ConfigurationError: there is none on the PATH, or it does not run.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise ConfigurationError(
            "no CUDA compiler: nvcc is not on the PATH; install the CUDA toolkit, or run on the CPU"
        )
    try:
        asked = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigurationError(f"the CUDA compiler {nvcc} does not run: {error}") from error
    return asked.stdout


def _key(target: Target) -> str:
    """Hash all that machine code depends on; a part's length before it keeps parts from running into each other."""
    digest = hashlib.sha256()
    sources = [part for named in sorted(_sources(_source_path(target)).items()) for part in named]
    for text in (*sources, *target.flags, target.arch, nvcc_version()):
        part = text.encode()
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _sources(path: Path) -> dict[str, str]:
    """A file and the headers of ours that it includes, and these in turn, whatever macros leave out: text by name."""
    found: dict[str, str] = {}
    waiting = [path]
    while waiting:
        one = waiting.pop()
        if one.name not in found:
            found[one.name] = one.read_text()
            waiting += [CUDA_DIR / name for name in _INCLUDE.findall(found[one.name])]
    return found


def _source_path(target: Target) -> Path:
    path = CUDA_DIR / f"{target.source}.cu"
    if not path.exists():
        raise KernelError(f"there is no kernel source {path}")
    return path


def _compile(target: Target) -> bytes:
    try:
        from pycuda.compiler import compile as nvcc
        from pycuda.driver import CompileError
    except ImportError as error:
        raise ConfigurationError(f"PyCUDA cannot be imported ({error}); install headrace[gpu]") from error
    try:
        machine_code: bytes = nvcc(
            _source_path(target).read_text(),
            options=target.flags,
            no_extern_c=True,
            arch=target.arch,
            cache_dir=False,
            include_dirs=[str(CUDA_DIR)],
        )
    except CompileError as error:
        raise KernelError(f"nvcc refused {target.source}.cu for {target.arch}: {error}") from error
    except OSError as error:  # of PyCUDA's own files, such as on a full disk
        raise KernelError(f"{target.source}.cu cannot be compiled: {error}") from error
    return machine_code


def _read(path: Path) -> bytes | None:
    """Read a cached file; one that cannot be read, or that a full disk or a crash has damaged, counts as missing."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, machine_code = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    return machine_code if hashlib.sha256(machine_code).digest() == digest else None


def _write(path: Path, machine_code: bytes) -> None:
    """Keep machine code for whoever comes next; where that fails, this process has it all the same."""
    try:
        _replace(path, hashlib.sha256(machine_code).digest() + machine_code)
    except OSError as error:
        logger.warning("%s is not kept, and will be compiled again: %s", path, error)


def _replace(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(handle, 0o644)  # other users may read what they find; a temporary file is its owner's alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock; the kernel drops it with the process, so no crash leaves it held.

    Raises:
        ConfigurationError: it cannot be made, or not be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)  # to read: another user's is locked like one's own
    except OSError as error:
        raise ConfigurationError(
            f"compiled kernels cannot be kept in {path.parent} ({error}); set HEADRACE_CACHE_DIR"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
