"""What the figures were measured on."""

import os
import platform
from importlib import metadata
from pathlib import Path

from espnet_pinch.asr.history import cpu_info

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")  # that decide the speed


def machine(threads: int, device: str = "cpu") -> str:
    """Processor, threads and Python, on one line.

    Args:
        threads: that are used.
    """
    info = cpu_info()
    name = info.get("model name", platform.processor())
    has = [flag for flag in FEATURES if flag in info.get("flags", "").split()]
    gpu = ""
    if device == "cuda":
        import torch

        gpu = f", {torch.cuda.get_device_name()}"
    used = f"{os.cpu_count()} cores, {threads} thread(s), load {os.getloadavg()[0]:.1f}"
    return (
        f"{name} ({', '.join(has)}){gpu}, {used}; Python {platform.python_version()}, torch {metadata.version('torch')}"
    )


def free_bytes() -> int:
    """Memory that new processes can take without swapping."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def peak_bytes() -> int:
    """The most memory that this process has held, of all libraries."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
