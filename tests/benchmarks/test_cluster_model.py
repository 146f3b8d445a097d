import math

import pytest
from pixelbench.cluster_model import Costs, Fleet, simulate

FREE = Costs(driver_s=0.0)


def test_one_worker_takes_as_long_as_all_its_shards():
    outcome = simulate(10, Fleet(1, shard_s=3.0, spread=0.0), FREE)
    assert outcome.makespan_s == pytest.approx(30.0)
    assert outcome.efficiency == pytest.approx(1.0)


def test_work_without_costs_grows_with_the_workers():
    outcome = simulate(1000, Fleet(100, shard_s=2.0, spread=0.0), FREE)
    assert outcome.makespan_s == pytest.approx(20.0)
    assert outcome.efficiency == pytest.approx(1.0)


def test_the_driver_bounds_what_many_workers_can_do():
    # 1000 workers ask for 1000 / 10 s = 100 shards a second, the driver hands out 50
    outcome = simulate(20_000, Fleet(1000, shard_s=10.0, spread=0.2), Costs(driver_s=0.02))
    assert outcome.makespan_s == pytest.approx(20_000 * 0.02, rel=0.05)
    assert outcome.steady == pytest.approx(0.5, abs=0.03)
    assert outcome.driver_busy > 0.95


def test_a_hand_over_costs_each_shard_its_own_length():
    outcome = simulate(200, Fleet(2, shard_s=9.0, spread=0.0), Costs(0.0, hand_over_s=1.0))
    assert outcome.steady == pytest.approx(0.9, abs=0.01)


def test_fewer_shards_than_workers_leave_workers_idle():
    outcome = simulate(5, Fleet(10, shard_s=1.0, spread=0.0), FREE)
    assert outcome.makespan_s == pytest.approx(1.0)
    assert outcome.efficiency == pytest.approx(0.5)
    assert math.isnan(outcome.steady)


def test_a_fleet_that_starts_slowly_works_later():
    quick = simulate(100, Fleet(10, shard_s=1.0, spread=0.0), FREE)
    slow = simulate(100, Fleet(10, shard_s=1.0, spread=0.0, start_s=5.0), FREE)
    assert 5.0 <= slow.makespan_s - quick.makespan_s <= 10.0


def test_publishing_is_told_as_a_share_of_the_run():
    costs = Costs(0.0, publish_s=1.0, publish_receipt_s=0.5, publish_every=10)
    outcome = simulate(100, Fleet(1, shard_s=1.0, spread=0.0), costs)
    assert outcome.publisher_busy == pytest.approx((10 * 1.0 + 100 * 0.5) / 100)


def test_the_same_seed_gives_the_same_run():
    fleet = Fleet(7, shard_s=1.0, spread=0.5)
    assert simulate(99, fleet, Costs(0.001)) == simulate(99, fleet, Costs(0.001))
    assert simulate(99, fleet, Costs(0.001)) != simulate(99, fleet, Costs(0.001), seed=1)


def test_nothing_to_play_is_refused():
    with pytest.raises(ValueError, match="expected shards and workers"):
        simulate(0, Fleet(1, shard_s=1.0), FREE)
