from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def data():
    """Real data beside the repository; tests that need it are skipped without."""
    if not DATA.is_dir():
        pytest.skip("no ../shared/data")
    return DATA
