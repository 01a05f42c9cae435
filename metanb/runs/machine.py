"""Where numbers come from: versions, device, code, time."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from metanb.settings import Settings


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, the device's name and the number of threads, as they are now."""
    names = ("metanb", "torch", "torchvision", "higher", "numpy")
    return {
        **{name: version(name) for name in names},
        "python": platform.python_version(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


def device_name(device: torch.device) -> str:
    """The name of the GPU, or the processor's model and the instructions that torch uses there, as "AMD EPYC (AVX2)".

    A virtual machine may tell a brand only, and processors of one brand differ twofold in speed,
    and in last bits.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})"


def utc_now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def code_version() -> str:
    """The commit that runs, "-dirty" behind it when the tree differs; "installed" outside a checkout."""
    try:
        command = [
            "git",
            "-C",
            str(Path(__file__).parent),
            "describe",
            "--always",
            "--dirty",
            "--exclude",
            "*",
        ]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


CUDA_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


class MemoryFullError(RuntimeError):
    """A run needs more memory than there is; the message names the run and the remedy."""


def resolve_device(device: str) -> torch.device:
    """The torch device of a name; "auto" is a GPU where there is one.

    Raises ValueError for one that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    there = ["cpu", "cuda"][: 1 + torch.cuda.is_available()] + [
        f"cuda:{i}" for i in range(torch.cuda.device_count())
    ]
    if device not in there:
        raise ValueError(
            f"device {device!r} is not there: use 'auto' or one of {', '.join(map(repr, there))}"
        )
    return torch.device(device)


@contextmanager
def enough_memory(settings: Settings) -> Iterator[None]:
    """Raises MemoryFullError where the work inside asks for more memory than there is.

    Smaller chunks would need less, but then a run's last bits would depend on what else the device
    had to do.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        # A library of CUDA's that finds no memory for itself says so in words alone.
        on_gpu = isinstance(error, torch.OutOfMemoryError) or any(
            one in str(error) for one in CUDA_FULL
        )
        # On the CPU torch's allocator raises a plain RuntimeError, and the system refuses to open a
        # module's folder.
        here = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        if not (on_gpu or here or getattr(error, "errno", None) == errno.ENOMEM):
            raise
        whose, other = (
            ("the GPU's memory", ", or go on with --device cpu") if on_gpu else ("memory", "")
        )
        raise MemoryFullError(
            f"{settings.id}: {whose} is full: stop what else uses it (in a grid: --processes 1){other}; the checkpoint "
            "of the last epoch is kept"
        ) from error


def is_interactive() -> bool:
    """Whether somebody watches: a terminal, or a notebook open in Jupyter (papermill and nbval are nobody)."""
    return sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next tensors, instead of handing it back to the kernel each pass.

    A meta-gradient frees and asks again for the same hundreds of megabytes; faulting those pages in
    anew takes 10 to 20 % of its time on a CPU. A setting of glibc for the whole process; with
    another C library it does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3  # their names in malloc.h begin with M_
        libc.mallopt(trim_threshold, 2**31 - 1)
        # older ones take 32 MB at most
        libc.mallopt(mmap_threshold, 2**30) or libc.mallopt(mmap_threshold, 2**25)
