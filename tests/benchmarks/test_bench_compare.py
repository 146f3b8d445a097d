"""Two models compared, and a night judged, over a million predictions.

    pytest -m benchmark -s tests/benchmarks/test_bench_compare.py

A prediction is what a model says of an image. Stores are made directly of published parts: 500,000
images with seven boxes each by two versions of a detector, which differ by noise; and ten nights
of 100,000 images each by one. Each step is a process of its own. Prints JSON, of which
docs/benchmarks/compare.md is made.
"""

import json
import sys

import pytest
from big_store import detector, write_big_store, write_version
from comparisons import compared, judged
from evaluations import call

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform == "darwin", reason="peak memory is read as Linux tells it"),
]


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """A store, and keys of a detector, of one that says the same, and of one that does not."""
    root = tmp_path_factory.mktemp("versions")
    specs = [detector(version) for version in range(3)]
    call(write_big_store, root, 500_000, 7, [root / "picture.jpg"])
    call(write_version, root, specs[0], specs[1], 0.0)
    call(write_version, root, specs[0], specs[2], 4.0)
    return root, [spec.key for spec in specs]


@pytest.mark.parametrize(("other", "is_same"), [(1, True), (2, False)], ids=["equal", "noise"])
def test_two_versions_on_half_a_million_images(machine, versions, tmp_path, other, is_same):
    root, keys = versions
    number, values, cost = call(compared, root, tmp_path, (keys[0], keys[other]))
    assert number == 500_000
    assert (values["matched boxes"] == 1) == is_same
    print(json.dumps({"compare": {"equal": is_same, **values, **cost}, **machine("pyarrow")}))


def test_a_night_after_nine_others(machine, tmp_path):
    call(write_big_store, tmp_path / "store", 1_000_000, 7, [tmp_path / "picture.jpg"])
    number, level, cost = call(judged, tmp_path / "store")
    assert (number, level) == (9, None)
    print(json.dumps({"health": {"nights before": number, **cost}, **machine("pyarrow")}))
