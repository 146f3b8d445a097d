from pixelmill.tasks.engine.stage_table import STAGES, stage_lines

ONE_THREAD = {
    "wall_s": 10.0,
    "load_s": 1.0,
    "read_s": 0.5,
    "read_busy_s": 2.0,
    "decode_s": 3.0,
    "forward_s": 4.0,
    "forward_s/cells-0a1b2c3d": 1.5,
    "forward_s/roads-4e5f6071": 2.5,
    "read_out_s": 1.0,
    "post_s": 0.0,
    "write_s": 0.25,
    "num_decoded": 8,
    "device": "cpu",
}


def test_stages_stand_in_the_order_of_the_work_and_idle_ones_are_left_out():
    names = [line.name for line in stage_lines(dict(reversed(ONE_THREAD.items())))]
    assert names == ["load", "read", "decode", "forward", "read_out", "write"]
    assert names == sorted(names, key=STAGES.index)


def test_reading_is_what_its_threads_did_and_what_the_scorer_waited_for():
    read = next(line for line in stage_lines(ONE_THREAD) if line.name == "read")
    assert (read.busy_s, read.wait_s, read.threads) == (2.0, 0.5, 1)


def test_a_stage_tells_the_models_apart():
    forward = next(line for line in stage_lines(ONE_THREAD) if line.name == "forward")
    assert forward.models == {"cells-0a1b2c3d": 1.5, "roads-4e5f6071": 2.5}


def test_the_reading_of_outputs_is_counted_once():
    busy_s = {line.name: line.busy_s for line in stage_lines(ONE_THREAD)}
    assert (busy_s["forward"], busy_s["read_out"]) == (3.0, 1.0)


def test_waiting_for_items_and_for_room_is_added_up():
    stats = ONE_THREAD | {"starved_s/decode": 0.5, "blocked_s/decode": 0.25, "threads/decode": 6}
    decode = next(line for line in stage_lines(stats) if line.name == "decode")
    assert (decode.wait_s, decode.threads) == (0.75, 6)


def test_statistics_without_stages_give_no_lines():
    assert stage_lines({"wall_s": 3.0, "device": "cpu"}) == ()
