import json
import math
from dataclasses import replace

import pyarrow as pa

from pixelmill.configs.schema import Gate
from pixelmill.tasks.canary import (
    Canary,
    broken_gates,
    choose_sample,
    keep_canary,
    read_canary,
    sample_digest,
    unmeasured,
)
from pixelmill.tasks.ingest import LISTING_SCHEMA, Listing
from pixelmill.tasks.sources import PROBLEMS_SCHEMA
from pixelmill.tasks.store import Store


def part(name: str, number: int) -> Listing:
    rows = [
        {"path": f"{name}/{i}", "source_uri": "", "size_bytes": 1, "modified": "1"}
        | {"image_id": f"{name}-{i}"}
        for i in range(number)
    ]
    return Listing(pa.Table.from_pylist(rows, LISTING_SCHEMA), PROBLEMS_SCHEMA.empty_table())


def test_a_sample_has_the_same_share_of_each_part_and_known_images_only():
    parts = {name: part(name, number) for name, number in (("a", 10), ("b", 30), ("c", 5))}
    known = frozenset(f"{name}-{i}" for name in "ab" for i in range(0, 30, 2))
    sample = choose_sample(parts, known, 8)
    sizes = {name: listing.images.num_rows for name, listing in sample.items()}
    assert sizes == {"a": 2, "b": 6}
    ids = {each for listing in sample.values() for each in listing.images["image_id"].to_pylist()}
    assert ids <= known
    again = choose_sample(dict(reversed(parts.items())), known, 8)
    assert {name: listing.images for name, listing in again.items()} == {
        name: listing.images for name, listing in sample.items()
    }


def test_a_sample_of_many_parts_is_spread_over_all_of_them():
    parts = {f"2024-{i:03d}": part(f"2024-{i:03d}", 3) for i in range(300)}
    known = frozenset(each for one in parts.values() for each in one.images["image_id"].to_pylist())
    names = list(choose_sample(parts, known, 40))
    assert len(names) == 20
    assert (names[0], names[-1]) == ("2024-000", "2024-299")
    assert choose_sample(parts, frozenset(), 40) == {}


def test_a_samples_digest_is_of_its_parts_and_images_in_any_order():
    parts = {name: part(name, 3) for name in ("a", "b")}
    digest = sample_digest(parts)
    assert sample_digest(dict(reversed(parts.items()))) == digest
    assert (
        len({digest, sample_digest({"a": parts["a"]}), sample_digest({**parts, "c": part("c", 1)})})
        == 3
    )


def test_how_a_canary_came_out_is_kept_in_a_document_that_is_json(tmp_path):
    store = Store(tmp_path / "store", create=True)
    gates = {"matched": (0.9, None), "shift": (None, 0.5)}
    canary = Canary("m-1", "m-2", 20, {"matched": 0.8}, ("matched is 0.8",), gates, "f" * 32)
    assert read_canary(store, "set", "m-2") is None
    keep_canary(store, "set", canary)
    assert read_canary(store, "set", "m-2") == canary
    assert read_canary(store, "set", "m-1") is None
    assert read_canary(store, "other", "m-2") is None
    keep_canary(store, "set", replace(canary, measures={"matched": math.nan}))

    def refuse(constant: str):
        raise AssertionError(f"JSON has no {constant}")

    (path,) = (tmp_path / "store/reports/set").iterdir()
    assert json.loads(path.read_text(), parse_constant=refuse)["measures"] == {"matched": None}
    kept = read_canary(store, "set", "m-2")
    assert kept is not None
    assert math.isnan(kept.measures["matched"])


def test_gates_that_do_not_hold_are_told_in_figures():
    measures = {"matched": 0.8, "shift": 0.3, "nothing": float("nan")}
    gates = {"matched": Gate(min=0.9), "shift": Gate(max=0.5), "nothing": Gate(min=0, max=1)}
    assert broken_gates(measures, gates) == (
        "matched is 0.8, below 0.9",
        "nothing is nan, below 0",
        "nothing is nan, above 1",
    )
    assert broken_gates(measures, {"absent": Gate(min=1)}) == ()
    assert unmeasured({"absent": Gate(min=1), "shift": Gate(min=0)}, ["matched", "shift"]) == (
        "absent was not measured (there are: matched, shift)",
    )
