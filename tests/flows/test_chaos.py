"""A round of `make chaos`: kill -9 at random moments, resumed until complete."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).parent


def test_a_round_of_kills_loses_and_doubles_nothing(tmp_path):
    sizes = ("--images", "40", "--shards", "8", "--kills", "2")
    # The first round with a scheduler of its own; of this seed, all is killed, then the scheduler
    which = ("--first", "1", "--rounds", "1", "--seed", "134")
    played = subprocess.run(
        (sys.executable, "-P", HERE / "chaos.py", *sizes, *which, "--folder", tmp_path / "chaos"),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    *_, row, total = map(json.loads, played.stdout.splitlines()[1:])
    assert played.returncode == 0, row
    assert total["rounds"] == 1
    assert sum(total["kills"].values()) >= 1
    assert (total["lost"], total["doubled"], total["different"]) == (0, 0, 0)


def test_what_is_lost_doubled_or_different_is_counted(chaos):
    def tables(ids, path="a.jpg"):
        images = pd.DataFrame({"model": "m", "image_id": ids, "path": path})
        keys = {"rank": 0, "kind": "semantic", "collection": "c", "size_bytes": 1, "modified": "1"}
        return {name: images.assign(**keys) for name in chaos.KEYS}

    expected = tables(["a", "b"]) | {"catalog": tables(["a"])["catalog"]}
    one = {"catalog": expected["catalog"]}
    assert not chaos.compare(expected, expected)
    assert chaos.compare(tables(["a"]) | one, expected) == {"lost": 3}
    assert chaos.compare(tables(["a", "b", "b"]) | one, expected) == {"doubled": 3}
    assert chaos.compare(tables(["a", "b"], "x.jpg") | one, expected) == {"different": 6}
    assert chaos.compare(tables(["a", "b", "c"]) | one, expected) == {"different": 3}
