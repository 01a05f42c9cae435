"""Kernels of notebooks, forked from a process that has loaded torch, as the other processes are.

One that starts from nothing takes some 5 seconds until a notebook's first cell is through.
"""

import os
import sys
import time
from typing import Any

import pandas as pd
from ipykernel.kernelapp import IPKernelApp
from jupyter_client import launcher

from tests.support.processes import Forked


class Kernel(Forked):
    """Stands for the `subprocess.Popen` of a kernel.

    Args:
        arguments: of ipykernel.
        folder: where it works.
        environment: its variables.
    """

    stdin = stdout = stderr = None

    def __init__(self, arguments: list[str], folder: str, environment: dict[str, str]) -> None:
        super().__init__(_serve, arguments, folder, environment)
        while os.getpgid(self.pid) != self.pid:  # signals go to its group: it must be its own
            time.sleep(0.01)


def launch(
    command: list[str], cwd: str | None = None, env: dict[str, str] | None = None, **options: Any
) -> Any:
    """Start a kernel as `jupyter_client.launcher.launch_kernel` does; one of Python is forked."""
    name, *arguments = command[command.index("-m") + 1 :] if "-m" in command else [""]
    if name != "ipykernel_launcher":
        return launcher.launch_kernel(command, cwd=cwd, env=env, **options)
    return Kernel(arguments, cwd or os.getcwd(), env if env is not None else dict(os.environ))


def _serve(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.stdin = open(os.devnull)
    sys.argv = ["ipykernel_launcher", *arguments]
    # pandas looks when it is imported whether it is in a notebook, and then shows 20 columns.
    pd.set_option("display.max_columns", 20)
    IPKernelApp.launch_instance(arguments)
