"""Two sessions of one process on one store; a dead one is one whose object is gone."""

import threading
import time

import pyarrow as pa
import pytest

from pixelmill.configs.schema import PreprocessConfig
from pixelmill.flows import neighbours as module
from pixelmill.flows.neighbours import Neighbours
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.store import PLAN, RunRecord, ShardRef, ShardWriter, Store, new_run_id
from pixelmill.tasks.store.claims import claimed_names, release, take_claim

SPEC = ModelSpec(
    name="model",
    task="classification",
    architecture="fake",
    arguments={},
    weights_path="fake.safetensors",
    weights_sha256="ab" * 32,
    classes=("cat",),
    preprocess=PreprocessConfig(canvases=((64, 64),)),
    precision="fp32",
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", create=True)


@pytest.fixture
def us(store):
    with Neighbours(store) as us:
        yield us


@pytest.fixture
def they(store):
    with Neighbours(store) as they:
        yield they


def begin(store, session: str, num_shards: int = 2) -> RunRecord:
    where = {"source_uri": "/x", "size_bytes": 9, "modified": "1", "model_mask": 1}
    rows = [{"shard": index, "path": f"{index}"} | where for index in range(num_shards)]
    record = RunRecord(
        run_id=new_run_id(),
        date="2024-05-31",
        collection="night",
        source="/images",
        created_at="2024-05-31T00:00:00+00:00",
        config={},
        models=(SPEC,),
        num_images=num_shards,
        num_shards=num_shards,
        listing={"listed": num_shards},
        session=session,
    )
    store.create_run(record, pa.Table.from_pylist(rows, schema=PLAN))
    return record


def find_held(us, shard: ShardRef) -> None:
    us.note(take_claim(us.store.backend, shard.id, us.session))


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    monkeypatch.setattr(module, "_LOOK_S", 0.0)


def test_one_plans_at_a_time(us, they):
    order = []

    def plan():
        with they.planning():
            order.append("they")

    with us.planning():
        thread = threading.Thread(target=plan)
        thread.start()
        time.sleep(0.2)
        order.append("we")
    thread.join()
    assert order == ["we", "they"]
    assert claimed_names(us.store.backend) == set()


def test_a_planner_that_died_keeps_nobody_waiting(us):
    take_claim(us.store.backend, "plan", "dead")
    with us.planning():
        pass
    assert claimed_names(us.store.backend) == set()


def test_a_run_lives_as_long_as_its_session(us, store):
    with Neighbours(store) as they:
        begin(store, they.session)
        assert [run.is_dead for run in us.open_runs()] == [False]
    time.sleep(1.1)  # a session is looked at once a second
    assert [run.is_dead for run in us.open_runs()] == [True]


def test_a_shard_is_held_until_it_is_given_back(us, they):
    shard = ShardRef(begin(us.store, they.session).run_id, 0, 1)
    assert not us.is_held(shard), "nobody has found it claimed"
    claim = take_claim(us.store.backend, shard.id, they.session)
    find_held(us, shard)
    assert us.is_held(shard)
    release(us.store.backend, claim)
    assert not us.is_held(shard)


def test_what_a_dead_session_holds_is_claimed_by_one_of_two(us, they):
    shard = ShardRef(begin(us.store, "dead").run_id, 0, 1)
    take_claim(us.store.backend, shard.id, "dead")
    find_held(us, shard)
    find_held(they, shard)
    assert not us.is_held(shard)
    assert they.is_held(shard)
    assert take_claim(us.store.backend, shard.id, us.session).holder == us.session


def test_a_dead_run_is_abandoned_with_its_ledger_and_what_it_claimed_is_swept(us, store):
    record = begin(store, "dead")
    ShardWriter(store, record, 0).commit()
    take_claim(store.backend, ShardRef(record.run_id, 1, 1).id, "dead")
    us.end_dead_runs([record])
    end = store.run_end(record.run_id)
    assert end is not None
    assert end.ledger[SPEC.key].skipped == {"stopped": 1}
    assert claimed_names(store.backend) == set()
    assert store.open_runs() == []


def test_what_one_process_may_do_is_refused_to_a_second_one_while_the_first_lives(us, they):
    assert not they.is_anybody("nightly")
    with us.only_one("nightly") as is_our_turn:
        assert is_our_turn
        they._looked_at = float("-inf")
        assert they.is_anybody("nightly")
        with they.only_one("nightly") as is_their_turn:
            assert not is_their_turn
    they._looked_at = float("-inf")
    assert not they.is_anybody("nightly")
    with they.only_one("nightly") as is_their_turn:
        assert is_their_turn


def test_what_a_dead_process_did_is_taken_over(us, store):
    take_claim(store.backend, "nightly", "0123456789abcdef")
    assert not us.is_anybody("nightly")
    with us.only_one("nightly") as is_our_turn:
        assert is_our_turn
    assert claimed_names(store.backend) == set()
