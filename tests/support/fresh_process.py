"""Python code in a process of its own, which starts without torch."""

import subprocess
import sys
from typing import Any


def require_no_torch(code: str, *arguments: Any) -> None:
    """Run code, and fail if it fails or if it loads torch, torchvision or higher.

    Args:
        code: Python; `sys` is imported.
        arguments: `sys.argv[1:]` of the process.
    """
    script = (
        f"import sys\n{code}\nassert not {{'torch', 'torchvision', 'higher'}} & set(sys.modules)"
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
