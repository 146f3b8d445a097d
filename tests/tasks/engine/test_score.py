import numpy as np
import pytest

from pixelmill.tasks.engine.score import score_shard
from pixelmill.tasks.store import Store, publish


def results(store: Store) -> dict:
    """All that the store holds of each image, comparable bit by bit."""
    publish(store)
    found: dict = {}
    for name in ("detections", "candidates", "captions", "labels"):
        frame = store.table(name).to_pandas()
        if len(frame):
            drop = ["date"]
            for (model, image_id), rows in frame.groupby(["model", "image_id"]):
                ordered = rows.sort_values("rank").drop(columns=drop)
                found[name, model, image_id] = ordered.to_csv(index=False, float_format="%.17g")
    images = store.images()
    for model, image_id, semantic, instances in zip(
        images.model, images.image_id, images.semantic_array, images.instances_array, strict=True
    ):
        if isinstance(semantic, str):
            found["semantic", model, image_id] = store.semantic_mask(image_id, model).tobytes()
        if isinstance(instances, str):
            found["masks", model, image_id] = store.instances(image_id, model).masks.tobytes()
    return found


@pytest.fixture
def all_specs(small_spec):
    names = ("detector", "masker", "segmenter", "captioner")
    return lambda batch_size=4: [small_spec(name, batch_size) for name in names]


def test_a_shard_is_scored_by_all_models_and_committed_once(
    store, make_run, all_specs, pictures
) -> None:
    specs = all_specs()
    run_id = make_run(store, specs, sorted(pictures.iterdir()))
    outcome = score_shard(store.root, run_id, 0)
    assert dict(outcome.num_scored) == {spec.key: 12 for spec in specs}
    assert outcome.num_failed == 0
    assert not outcome.cached
    again = score_shard(store.root, run_id, 0)
    assert again.cached
    assert again.num_scored == outcome.num_scored
    publish(store)
    assert len(store.images()) == 48
    assert len(store.catalog()) == 12
    assert len(store.boxes(specs[0].key))
    assert len(store.captions()) == 12
    image = store.images(specs[2].key).iloc[0]
    assert store.semantic_mask(image.image_id, specs[2].key).shape == (image.height, image.width)
    assert {"read_s", "decode_s", "transform_s", "forward_s", "post_s", "wall_s"} <= set(
        outcome.stats
    )


def test_batch_mates_position_and_shards_change_no_bit(
    tmp_path, make_run, all_specs, pictures
) -> None:
    """Scored in one shard, in other order, in shards of one and with other batch sizes."""
    paths = sorted(pictures.iterdir())
    layouts = {
        "together": (paths, lambda index: 0),
        "backwards": (paths[::-1], lambda index: 0),
        "shuffled": ([paths[i] for i in np.random.default_rng(1).permutation(12)], lambda i: i % 3),
        "alone": (paths, lambda index: index),
    }
    seen = {}
    for name, (ordered, shard_of) in layouts.items():
        store = Store(tmp_path / name, create=True)
        run_id = make_run(store, all_specs(), ordered, shard_of=shard_of)
        for index in sorted({shard_of(i) for i in range(12)}):
            score_shard(store.root, run_id, index)
        seen[name] = results(store)
    expected = seen.pop("together")
    assert len({key[2] for key in expected}) == 12
    for name, found in seen.items():
        assert found.keys() == expected.keys(), name
        different = [key for key in expected if found[key] != expected[key]]
        assert not different, (name, different)
