"""The machine: its device, its memory, its terminal, and the provenance of its numbers."""

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

from metanb import __version__
from metanb.settings import Settings

# Libraries of CUDA that find no memory for themselves say so in words alone.
CUDA_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
CPU_FULL = "can't allocate memory"  # in the plain RuntimeError of torch's allocator on the CPU
# Variables by which git tells its hooks, and the commands of a rebase, which repository is meant.
OF_GIT_HOOKS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")


# Device


def resolve_device(device: str) -> torch.device:
    """The torch device of a name.

    Args:
        device: "cpu", "cuda", "cuda:0" and so on, or "auto" for a GPU where there is one.

    Raises:
        ValueError: the machine has no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    available = ["cpu"]
    if torch.cuda.is_available():
        available += ["cuda"]
    available += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if device not in available:
        choices = ", ".join(map(repr, available))
        raise ValueError(f"device {device!r} is not there: use 'auto' or one of {choices}")
    return torch.device(device)


def device_name(device: torch.device) -> str:
    """The name of the GPU; or the processor's model and torch's instructions, "AMD EPYC (AVX2)".

    The instructions belong to the name, because a virtual machine may report a brand alone.
    Processors of one brand differ twofold in speed, and in last bits.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor_name()} ({torch.backends.cpu.get_cpu_capability()})"


def _processor_name() -> str:
    """The model of the processor as Linux reports it; elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


# Memory


class MemoryFullError(RuntimeError):
    """A run needs more memory than there is; the message names the run and the remedy."""


@contextmanager
def enough_memory(settings: Settings) -> Iterator[None]:
    """Turn any error inside that means "out of memory" into a MemoryFullError that names the run.

    torch, CUDA's libraries, Python and the operating system report full memory by four kinds of
    error. Callers catch the one, and users read one line with a remedy. Nothing is tried again with
    smaller chunks, because then a run's last bits would depend on the load of the device.

    Args:
        settings: of the run that computes inside.

    Raises:
        MemoryFullError: the GPU's memory or the machine's is full. Other errors pass unchanged.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if _is_gpu_full(error):
            memory = "the GPU's memory"
            remedy = "stop what else uses it (in a grid: --processes 1), or go on with --device cpu"
        elif _is_cpu_full(error):
            memory = "memory"
            remedy = "stop what else uses it (in a grid: --processes 1)"
        else:
            raise
        raise MemoryFullError(
            f"{settings.id}: {memory} is full: {remedy}; the checkpoint of the last epoch is kept"
        ) from error


def _is_gpu_full(error: Exception) -> bool:
    """Whether an error means that the GPU's memory is full."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in CUDA_FULL
    )


def _is_cpu_full(error: Exception) -> bool:
    """Whether an error means that the machine's memory is full."""
    if isinstance(error, MemoryError) or CPU_FULL in str(error):
        return True
    return getattr(error, "errno", None) == errno.ENOMEM  # as in opening a module's folder


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next tensors; the kernel does not get it back.

    A meta-gradient frees and requests the same hundreds of megabytes again and again. Each time the
    kernel would map these pages anew, which takes 10 to 20 % of the time on a CPU. The setting is
    glibc's and holds for the whole process; with another C library this function does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    trim_threshold = -1  # M_TRIM_THRESHOLD in malloc.h
    mmap_threshold = -3  # M_MMAP_THRESHOLD
    libc.mallopt(trim_threshold, 2**31 - 1)
    if not libc.mallopt(mmap_threshold, 2**30):
        libc.mallopt(mmap_threshold, 2**25)  # older versions take 32 MB at most


# Terminal


def is_interactive() -> bool:
    """Whether output is interactive: a terminal, or a notebook that is open in Jupyter.

    A notebook that papermill or nbval executes is not, and neither is a command with redirected
    output, though a notebook started it.
    """
    kernel = sys.modules.get("ipykernel.kernelapp")
    in_kernel = kernel is not None and kernel.IPKernelApp.initialized()
    return sys.stderr.isatty() or (in_kernel and "JPY_SESSION_NAME" in os.environ)


# Provenance


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, the device's name and the number of threads, as they are now."""
    return {
        "metanb": __version__,
        **{name: version(name) for name in ("torch", "torchvision", "higher", "numpy")},
        "python": platform.python_version(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }


def code_version() -> str:
    """The commit of the code that runs, or "installed" outside of a checkout.

    The commit ends in "-dirty" if the working tree differs from it.
    """
    package = Path(__file__).resolve().parents[1]
    # Of the package's own repository alone: it may be installed inside of another one. A checkout
    # that belongs to another user is one, too.
    git = ["git", "-c", "safe.directory=*", "-C", str(package)]
    describe = ["describe", "--always", "--dirty", "--exclude", "*"]
    try:
        top = _output_of_git([*git, "rev-parse", "--show-toplevel"])
        if Path(top).resolve() != package.parent:
            return "installed"
        return _output_of_git([*git, *describe])
    except (OSError, subprocess.SubprocessError):
        return "installed"


def _output_of_git(command: list[str]) -> str:
    """What a git command prints; a hook of git's, which names a repository, does not matter."""
    environment = {name: value for name, value in os.environ.items() if name not in OF_GIT_HOOKS}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=10, env=environment
    )
    return done.stdout.strip()


def utc_now() -> str:
    """The time now, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
