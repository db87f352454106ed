"""What importing Headrace brings with it."""

import subprocess
import sys


def test_importing_headrace_brings_no_torch() -> None:
    code = "import sys, headrace; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
