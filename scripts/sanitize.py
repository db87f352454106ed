"""compute-sanitizer over kernels that run alone in a process: exit status 1 where a tool finds anything.

    python scripts/sanitize.py [--tool memcheck --tool racecheck ...] [--processes N] [--timeout-s N] [NAME ...]

Default: memcheck and racecheck over all that should be clean, several programs side by side.
``headrace.testing.sanitized`` has the programs, and says why the tools do not watch pytest: tests may multiply by
cuBLAS.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product

from headrace.testing.sanitized import PROGRAMS, run

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
#: Finds a race within cuBLAS's own kernel: a control.
NOT_CLEAN = "cublas"


def sanitize(tool: str, name: str, *, timeout_s: float) -> bool:
    """Run a program under a tool; says whether nothing was found and all results were right."""
    began_s = time.monotonic()
    # The tool's own status tells of hazards, if it is asked for.
    command = ["compute-sanitizer", "--tool", tool, "--print-limit", "20", "--error-exitcode", "9"]
    command += [sys.executable, __file__, "--inside", name]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as done:
        try:
            output, errors = done.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            # The program, too: it would go on beside the next one.
            os.killpg(done.pid, signal.SIGKILL)
            print(f"{tool} {name}: not done within {timeout_s:.0f} s", flush=True)
            return False
    lines = (output + errors).splitlines()
    summary = next((line.strip("= ") for line in reversed(lines) if "SUMMARY" in line), "no summary")
    right = sum(line.endswith(": right") for line in lines)
    told = [f"{tool} {name}: {right} results right; {summary} ({time.monotonic() - began_s:.0f} s)"]
    if done.returncode:
        told += [line for line in lines if not line.endswith(": right")]
    print("\n".join(told), flush=True)
    return done.returncode == 0 and right > 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PROGRAMS)}")
    parser.add_argument("--tool", action="append", choices=TOOLS)
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1), help="programs side by side")
    parser.add_argument("--timeout-s", type=float, default=120.0, help="of each program")
    parser.add_argument("--inside", choices=tuple(PROGRAMS), help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.inside:
        return int(run(wanted.inside) > 0)
    if unknown := [name for name in wanted.names if name not in PROGRAMS]:
        parser.error(f"no program {', '.join(unknown)}; there are {', '.join(PROGRAMS)}")
    if wanted.processes < 1 or wanted.timeout_s <= 0:
        parser.error("--processes is 1 at least, and --timeout-s more than nothing")
    if shutil.which("compute-sanitizer") is None:
        parser.error("compute-sanitizer is not on the PATH; it comes with the CUDA toolkit")
    names = wanted.names or [name for name in PROGRAMS if name != NOT_CLEAN]
    with ThreadPoolExecutor(wanted.processes) as side_by_side:
        jobs = list(product(wanted.tool or TOOLS[:2], names))
        # All of them, whatever the first ones find.
        clean = list(side_by_side.map(lambda job: sanitize(*job, timeout_s=wanted.timeout_s), jobs))
        return int(not all(clean))


if __name__ == "__main__":
    sys.exit(main())
