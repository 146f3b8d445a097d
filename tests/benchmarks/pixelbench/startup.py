"""From the command to the first committed image, beside what Python needs to load the model."""

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pixelbench.workloads import make_workload

__all__ = ["Startup", "measure_startup"]

_LOAD = """
from pixelmill.configs.load import load_config
from pixelmill.models.build import build_network, resolve_model
from pathlib import Path
for model in load_config("demo").models:
    build_network(resolve_model(model, Path.cwd()))
"""
_TIMEOUT_S = 300
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Startup:
    """Medians over rounds, seconds.

    Attributes:
        import_s: `python -c "import torch, torchvision"`.
        load_s: that, and building the three embedded models.
        commit_s: `pixelmill score` until the first receipt is in the store, by cluster.
        total_s: until the command has ended, everything published.
    """

    num_images: int
    num_rounds: int
    import_s: float
    load_s: float
    commit_s: dict[str, float]
    total_s: dict[str, float]


def measure_startup(scratch: Path, *, num_rounds: int = 5, num_images: int = 8) -> Startup:
    """Start everything in turn, `num_rounds` times after one that does not count."""
    workload = make_workload("instances", scratch / "startup", num_images)
    clusters = ("inline", "local:2")
    imports: list[float] = []
    loads: list[float] = []
    commits: dict[str, list[float]] = {cluster: [] for cluster in clusters}
    totals: dict[str, list[float]] = {cluster: [] for cluster in clusters}
    for _ in range(num_rounds + 1):
        imports.append(_time_python("import torch, torchvision"))
        loads.append(_time_python(_LOAD))
        for cluster in clusters:
            commit_s, total_s = _time_command(workload.folder, scratch / "started", cluster)
            commits[cluster].append(commit_s)
            totals[cluster].append(total_s)
    return Startup(
        num_images=num_images,
        num_rounds=num_rounds,
        import_s=median(imports[1:]),
        load_s=median(loads[1:]),
        commit_s={cluster: median(values[1:]) for cluster, values in commits.items()},
        total_s={cluster: median(values[1:]) for cluster, values in totals.items()},
    )


def _time_python(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=_TIMEOUT_S)
    return time.perf_counter() - started


def _time_command(folder: Path, root: Path, cluster: str) -> tuple[float, float]:
    """Seconds to the first receipt, and to the end."""
    shutil.rmtree(root, ignore_errors=True)
    command = [sys.executable, "-P", "-m", "pixelmill.flows.cli", "score", str(folder)]
    command += ["--preset", "demo", "--out", str(root), "--cluster", cluster, "--no-report"]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    receipts = root / "_commit" / "receipts"
    while process.poll() is None and not any(receipts.rglob("*.json")):
        time.sleep(_POLL_S)
    committed = time.perf_counter() - started
    _, err = process.communicate(timeout=_TIMEOUT_S)
    if process.returncode or not any(receipts.rglob("*.json")):
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {err[-2000:]!r}")
    return committed, time.perf_counter() - started
