from types import SimpleNamespace

import pytest

from pixelmill.flows import worker
from pixelmill.flows.worker import Held, score_reference
from pixelmill.tasks.store import ShardRef, Store
from pixelmill.tasks.store.claims import claimed_names, take_claim

SHARD = ShardRef("20240531T000000-abcdef", 7, 4)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", create=True)


@pytest.fixture
def engine(monkeypatch, store):
    """Scores nothing; remembers how it was called, and what was claimed then."""
    engine = SimpleNamespace(calls=[], error=None)

    def score_shard(root, run_id, shard_index, *, should_stop, on_scored, may_exit):
        engine.calls.append((run_id, shard_index, may_exit, claimed_names(store.backend)))
        if engine.error is not None:
            raise engine.error
        return "outcome"

    monkeypatch.setattr(worker, "score_shard", score_shard)
    return engine


def score(store, session="ours", **options):
    options = {"should_stop": lambda: False, "is_isolated": True} | options
    return score_reference(store.root, session, SHARD, **options)


def test_a_shard_is_claimed_while_it_is_scored(store, engine):
    assert score(store) == "outcome"
    assert engine.calls == [(SHARD.run_id, SHARD.index, True, {SHARD.id})]
    assert claimed_names(store.backend) == set()


def test_a_shard_of_another_session_is_left_alone(store, engine):
    claim = take_claim(store.backend, SHARD.id, "theirs")
    assert score(store) == Held(claim)
    assert engine.calls == []
    assert claimed_names(store.backend) == {SHARD.id}


def test_what_our_own_killed_worker_had_claimed_is_ours(store, engine):
    take_claim(store.backend, SHARD.id, "ours")
    assert score(store) == "outcome"
    assert claimed_names(store.backend) == set()


def test_a_shard_that_fails_is_given_back(store, engine):
    engine.error = ConnectionError("reset")
    with pytest.raises(ConnectionError):
        score(store)
    assert claimed_names(store.backend) == set()


def test_a_claim_that_cannot_be_given_back_spoils_no_result(store, engine, monkeypatch, caplog):
    def fail(backend, claim):
        raise OSError("away")

    monkeypatch.setattr(worker, "release", fail)
    assert score(store) == "outcome"
    assert "could not release" in caplog.text


def test_only_an_isolated_process_may_end_itself(store, engine):
    score(store, is_isolated=False)
    assert [may_exit for _, _, may_exit, _ in engine.calls] == [False]
