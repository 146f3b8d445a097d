import json
import logging
import threading

import pytest

from pixelmill.flows.logs import json_log, score_logged
from pixelmill.tasks.store import ShardRef

SHARD = ShardRef("20240531T000000-000000", 3, 10)


@pytest.fixture
def factory():
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


def test_records_of_a_shard_say_of_which_run_shard_and_worker(factory, tmp_path):
    def call(shard, *, should_stop):
        logging.getLogger("pixelmill.tasks.engine").warning("odd at %s", "https://a:hunter22@h/")
        logging.getLogger("other").warning("not ours")
        return should_stop()

    with json_log(str(tmp_path / "log.jsonl")):
        assert score_logged(call, SHARD, should_stop=lambda: "asked") == "asked"
        logging.getLogger("pixelmill.flows").info("between shards", extra={"images": 4})
    logging.getLogger("pixelmill.flows").warning("too late")
    first, second = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert (first["run"], first["shard"]) == (SHARD.run_id, SHARD.id)
    assert first["worker"].rpartition(":")[2].isdecimal()
    assert (first["level"], first["logger"]) == ("WARNING", "pixelmill.tasks.engine")
    assert "hunter22" not in first["message"]
    assert "shard" not in second
    assert second["images"] == 4


def test_two_shards_in_one_process_are_told_apart(factory, tmp_path):
    barrier = threading.Barrier(2)

    def call(shard, *, should_stop):
        barrier.wait(10)
        logging.getLogger("pixelmill").warning("%d", shard.index)

    with json_log(str(tmp_path / "log.jsonl")):
        threads = [
            threading.Thread(
                target=score_logged,
                args=(call, ShardRef(SHARD.run_id, index, 1)),
                kwargs={"should_stop": lambda: False},
            )
            for index in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {line["message"]: line["shard"][-6:] for line in lines} == {"0": "000000", "1": "000001"}


def test_without_the_variable_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.delenv("PIXELMILL_LOG_JSON", raising=False)
    before = list(logging.getLogger("pixelmill").handlers)  # pytest's own may be there
    with json_log():
        assert logging.getLogger("pixelmill").handlers == before
