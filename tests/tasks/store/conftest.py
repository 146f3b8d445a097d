import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from pixelmill.tasks.store import Store, publish

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def fakes():
    """fakes.py: tests are not a package, and the chaos workers need it as a file."""
    return SimpleNamespace(**runpy.run_path(str(HERE / "fakes.py")))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "out", create=True)


@pytest.fixture
def contents():
    return {f"a/{i:02d}.jpg": f"picture {i}" for i in range(10)}


@pytest.fixture
def published(store, fakes, contents):
    """A store with one run of ten images by two models, published."""
    fakes.score_run(store, fakes.make_run(store, contents, run_id="20260101T000000-aaaaaa"))
    publish(store)
    return store
