"""What a figure means nothing without: the machine, the versions, and who else was using it."""

import os
import platform
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

__all__ = ["cpu_seconds", "describe_machine", "machine_busy_s"]

PACKAGES = (
    "torch", "torchvision", "simplejpeg", "pillow", "numpy", "pyarrow", "zarr", "distributed",
    "onnxruntime", "openvino", "ray", "sahi",
)  # fmt: skip
_JIFFY_S = 1 / os.sysconf("SC_CLK_TCK")


def describe_machine() -> dict[str, Any]:
    """Processor, memory, GPUs and versions of what is timed; what is not installed is left out."""
    versions = {name: found for name in PACKAGES if (found := _version(name))}
    return {
        "processor": f"{_processor()} x {os.cpu_count()}",
        "features": [name for name in ("avx512f", "avx512_bf16", "amx_bf16") if name in _flags()],
        "memory_GB": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": _gpus(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **versions,
    }


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """CPU seconds of processes with everything that they have started, ended or not."""
    total = 0.0
    for root in processes:
        for process in (root, *root.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue  # its parent has its seconds now
            total += times.user + times.system + times.children_user + times.children_system
    return total


def machine_busy_s() -> float:
    """Seconds that all cores together have been busy since the machine started; 0 off Linux."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) * _JIFFY_S


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpuinfo(key: str) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(rf"{key}\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else ""


def _processor() -> str:
    return _cpuinfo("model name") or platform.machine()


def _flags() -> set[str]:
    return set(_cpuinfo("flags").split())


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
