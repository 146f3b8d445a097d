import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def machine():
    """Function from names of packages to what a figure means nothing without."""

    def describe(*packages: str) -> dict[str, object]:
        return {
            "machine": f"{_processor()} x {os.cpu_count()}",
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        }

    return describe


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.machine()
