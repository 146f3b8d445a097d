import pyarrow as pa

from pixelmill.configs.schema import Gate
from pixelmill.tasks.canary import broken_gates, choose_sample, unmeasured
from pixelmill.tasks.ingest import LISTING_SCHEMA, Listing
from pixelmill.tasks.sources import PROBLEMS_SCHEMA


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
