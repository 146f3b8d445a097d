"""An editable install finds a forgotten subpackage; a wheel does not."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_subpackage_is_listed():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {
        ".".join(("pixelmill", *path.parent.relative_to(ROOT).parts))
        for folder in ("flows", "tasks", "models", "configs")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(setuptools["packages"]) == on_disk


def test_every_folder_is_marked_typed():
    assert all(
        (ROOT / folder / "py.typed").exists() for folder in ("flows", "tasks", "models", "configs")
    )
