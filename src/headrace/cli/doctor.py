"""``headrace doctor``: can this machine run an engine? What is missing for a GPU, and what to do about it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from headrace.config import Settings
from headrace.errors import ConfigurationError, HeadraceError, KernelError

#: Looks at one thing; gives what it found, or raises what is wrong with it.
Look = Callable[[], str]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that an engine on a GPU needs.

    Attributes:
        name: what it is.
        look: finds out.
    """

    name: str
    look: Look


def doctor(
    device: Annotated[
        str | None, typer.Option("--device", help="cuda or cuda:<index>. Default: as set, else the first GPU.")
    ] = None,
) -> None:
    """Check the GPU, PyCUDA, the CUDA compiler and the kernels' cache, and run a kernel.

    Exits with 1 if an engine could not run on the device that the settings or --device name. A machine that is only
    to run engines on its CPU needs none of this, and is told so.
    """
    settings = Settings.load(device=device)
    is_wanted = settings.device != "cpu"
    index = int(settings.device.partition(":")[2] or 0)
    console = Console(highlight=False, soft_wrap=True)
    failed = [check.name for check in _checks(index) if not _report(console, check)]
    if not failed:
        console.print(f"Engines can run on cuda:{index}: headrace up --device cuda:{index}")
    elif is_wanted:
        raise KernelError(f"engines cannot run on {settings.device}: see {', '.join(failed)} above")
    else:
        console.print("Engines run on this machine's CPU; for a GPU, see what failed above.")


def _report(console: Console, check: Check) -> bool:
    try:
        found = check.look()
    except (HeadraceError, RuntimeError) as error:  # torch's own are of the second kind
        console.print(f"[red]failed[/red]  {check.name:<9} {escape(str(error))}")
        return False
    console.print(f"[green]ok[/green]      {check.name:<9} {escape(found)}")
    return True


def _checks(index: int) -> list[Check]:
    return [
        Check("torch", _torch),
        Check("GPU", lambda: _gpu(index)),
        Check("compiler", _compiler),
        Check("cache", _cache),
        Check("kernel", lambda: _kernel(index)),
    ]


def _torch() -> str:
    try:
        import torch
    except ImportError as error:
        raise ConfigurationError(f"torch cannot be imported ({error}); install headrace[worker]") from error
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
    return f"{torch.__version__}, built for {built}"


def _gpu(index: int) -> str:
    import torch

    from headrace.kernels.device import open_device

    device = open_device(index)
    free, total = torch.cuda.mem_get_info(index)
    return f"{torch.cuda.get_device_name(index)}, {device.arch}, {free >> 30} of {total >> 30} GiB free"


def _compiler() -> str:
    from headrace.kernels.build import nvcc_version

    return next((line for line in nvcc_version().splitlines() if "release" in line), "nvcc")


def _cache() -> str:
    from headrace.kernels.build import default_cache_dir

    folder = default_cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".doctor"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written ({error}); set HEADRACE_CACHE_DIR") from error
    return f"{folder}, {sum(1 for _ in folder.glob('*.cubin'))} kernels compiled"


def _kernel(index: int) -> str:
    """Compile and run the smallest kernel."""
    import torch

    from headrace.kernels.add import add
    from headrace.kernels.device import open_device

    open_device(index)
    device = torch.device("cuda", index)
    x, y = torch.arange(1000.0, device=device), torch.ones(1000, device=device)
    add(x, y)
    if not torch.equal(x.cpu(), torch.arange(1.0, 1001.0)):
        raise KernelError("a kernel ran and computed nonsense: the GPU or its driver is broken")
    return "compiled and ran"
