import pytest

from pixelmill.flows import pool
from pixelmill.flows.pool import choose_cluster, count_gpus


@pytest.fixture
def machine(monkeypatch):
    def configure(cores: int, gpus: int, has_dask_cuda: bool = False):
        monkeypatch.setattr(pool, "count_cores", lambda: cores)
        monkeypatch.setattr(pool, "count_gpus", lambda: gpus)
        monkeypatch.setattr(pool, "find_spec", lambda name: has_dask_cuda or None)

    return configure


@pytest.mark.parametrize(
    ("cores", "gpus", "has_dask_cuda", "num_shards", "chosen"),
    [
        (8, 0, False, 100, "local"),
        (8, 0, False, 2, "inline"),
        (1, 0, False, 100, "inline"),
        (8, 1, False, 100, "inline"),
        (8, 4, True, 100, "cuda"),
        (8, 4, False, 100, "inline"),
    ],
)
def test_auto_chooses_by_what_is_there(machine, cores, gpus, has_dask_cuda, num_shards, chosen):
    machine(cores, gpus, has_dask_cuda)
    assert choose_cluster("auto", num_shards) == chosen


@pytest.mark.parametrize("cluster", ["inline", "cuda", "local", "local:3", "tcp://host:8786"])
def test_a_named_cluster_is_taken(cluster):
    assert choose_cluster(cluster, 1) == cluster


@pytest.mark.parametrize("cluster", ["", "lokal", "local:x", "local:0", "host:8786"])
def test_other_names_are_refused(cluster):
    with pytest.raises(ValueError, match="cluster must be auto, inline"):
        choose_cluster(cluster, 1)


def test_visible_devices_are_counted_without_cuda(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    assert count_gpus() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert count_gpus() == 0
