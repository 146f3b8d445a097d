import pytest

from pixelmill.tasks.report import summarise_run


def test_states_add_up_to_the_collection(store, kit, paths):
    summary = summarise_run(store, collection=kit.COLLECTION)
    assert summary.num_images == len(paths) + 1
    finder, painter, teller, sorter = summary.ledgers
    assert (finder.num_scored, finder.num_empty, finder.num_failed) == (len(paths) - 1, 1, 1)
    for ledger in (painter, teller, sorter):
        assert (ledger.num_scored, ledger.num_empty, ledger.num_failed) == (len(paths), 0, 1)
    for ledger in summary.ledgers:
        states = (ledger.num_scored, ledger.num_empty, ledger.num_failed, ledger.num_missing)
        assert sum(states) == summary.num_images


def test_run_is_summed_up_from_its_receipts(store, kit, paths, specs):
    summary = summarise_run(store, collection=kit.COLLECTION, run_id=kit.RUN_ID)
    assert (summary.num_shards, summary.num_committed) == (1, 1)
    assert summary.num_inputs == len(paths) + 1
    assert summary.images_per_second == pytest.approx((len(paths) + 1) / 2.0)
    assert [(stage.name, stage.busy_s) for stage in summary.stages] == [
        ("decode", 0.5),
        ("forward", 1.5),
    ]
    assert summary.stages[1].models == {specs[0].key: 1.5}
    assert summary.bottleneck.startswith("forward-bound: 75% of a worker's time")
    sizes = store.images(specs[0].key)["size_bytes"]
    assert summary.input_bytes == sizes.sum()
    staged = sum(file.size_bytes for file in store.receipts()[0].files)
    assert summary.output_bytes > staged


def test_failures_are_grouped_with_examples(store, kit):
    (group,) = summarise_run(store, collection=kit.COLLECTION).failures
    assert (group.stage, group.reason, group.retryable) == ("read", "missing_file", True)
    assert (group.num_tries, group.num_images, group.num_open) == (1, 1, 1)
    assert group.example_paths == ("gone.jpg",)


def test_unknown_collection_has_no_images_and_no_run(store):
    summary = summarise_run(store, collection="elsewhere")
    assert (summary.num_images, summary.run_id, summary.ledgers) == (0, None, ())


def test_unknown_run_is_refused(store, kit):
    with pytest.raises(KeyError, match="no run"):
        summarise_run(store, collection=kit.COLLECTION, run_id="20990101T000000-ffffff")
