"""Each folder may import only those before it: configs, models, tasks, flows."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ("configs", "models", "tasks", "flows")
CLUSTER = {
    "dask", "distributed", "dask_cuda", "dask_jobqueue", "dask_kubernetes", "prefect_dask",
}  # fmt: skip
FORBIDDEN = {
    "configs": {"torch", "torchvision", "prefect", *CLUSTER},
    "models": {"prefect", *CLUSTER},
    "tasks": CLUSTER,
    "flows": set[str](),
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("folder", ORDER)
def test_imports_point_down(folder: str):
    above = {f"pixelmill.{name}" for name in ORDER[ORDER.index(folder) + 1 :]}
    sources = sorted((ROOT / folder).rglob("*.py"))
    assert sources
    for path in sources:
        for name in imported(path):
            assert not any(name == a or name.startswith(f"{a}.") for a in above), (path, name)
            assert name.split(".")[0] not in FORBIDDEN[folder], (path, name)


@pytest.mark.parametrize("folder", ["store", "metrics", "report", "engine", "evaluation", "scenes"])
def test_shared_subpackages_know_no_prefect(folder: str):
    for path in (ROOT / "tasks" / folder).rglob("*.py"):
        assert not any(name.split(".")[0] == "prefect" for name in imported(path)), path
