import socket
import time

import pytest

from pixelmill.configs.schema import ComputeConfig
from pixelmill.flows import pool
from pixelmill.flows.pool import (
    check_cluster,
    choose_cluster,
    count_gpus,
    count_planned_workers,
    open_pool,
)


@pytest.fixture
def machine(monkeypatch):
    def configure(cores: int, gpus: int, has_dask_cuda: bool = False):
        monkeypatch.setattr(pool, "count_cores", lambda: cores)
        monkeypatch.setattr(pool, "count_gpus", lambda: gpus)
        monkeypatch.setattr(pool, "find_spec", lambda name: has_dask_cuda or None)

    return configure


@pytest.mark.parametrize(
    ("cores", "gpus", "has_dask_cuda", "chosen"),
    [
        (8, 0, False, "local"),
        (1, 0, False, "local"),
        (8, 1, False, "local:1"),
        (8, 4, True, "cuda"),
        (8, 4, False, "local:1"),
    ],
)
def test_auto_chooses_by_what_is_there_and_never_this_process(
    machine, cores, gpus, has_dask_cuda, chosen
):
    machine(cores, gpus, has_dask_cuda)
    assert choose_cluster("auto") == chosen


@pytest.mark.parametrize(
    "cluster", ["inline", "cuda", "local", "local:3", "tcp://host:8786", "slurm", "kubernetes"]
)
def test_a_named_cluster_is_taken(cluster):
    assert choose_cluster(cluster) == cluster


@pytest.mark.parametrize("cluster", ["", "lokal", "local:x", "local:0", "host:8786"])
def test_other_names_are_refused(cluster):
    with pytest.raises(ValueError, match="cluster must be auto, inline"):
        choose_cluster(cluster)


def test_visible_devices_are_counted_without_cuda(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    assert count_gpus() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert count_gpus() == 0


def test_inline_says_what_it_is_for(caplog):
    with open_pool("inline", 1) as inline:
        assert not inline.is_isolated
    assert "for debugging" in caplog.text


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "tls://localhost:9", "tcp://[::1]:9"])
def test_a_scheduler_that_is_not_there_is_told_at_once(address):
    started = time.monotonic()
    with pytest.raises(ValueError, match="no Dask scheduler answers at"):
        check_cluster(address)
    assert time.monotonic() - started < 4


def test_a_scheduler_that_listens_and_other_clusters_pass():
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_cluster(f"tcp://127.0.0.1:{server.getsockname()[1]}")
    for cluster in ("auto", "local:2", "ucx://somewhere:1"):
        check_cluster(cluster)


@pytest.mark.parametrize(
    ("cluster", "extra"),
    [("cuda", "cuda"), ("slurm", "hpc"), ("pbs", "hpc"), ("kubernetes", "kubernetes")],
)
def test_an_extra_that_is_missing_is_told_before_the_work(machine, cluster, extra):
    machine(8, 0)
    with pytest.raises(ValueError, match=rf"{cluster} needs: pip install 'pixelmill\[{extra}\]'"):
        check_cluster(cluster)


def test_jobs_are_submitted_where_there_is_a_queue(machine, monkeypatch, tmp_path):
    machine(8, 0, has_dask_cuda=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="needs sbatch, which is not on the PATH: run this where"):
        check_cluster("slurm")
    (tmp_path / "qsub").touch(mode=0o755)
    check_cluster("pbs")


@pytest.mark.parametrize(
    ("compute", "num_workers"),
    [
        ({"cluster": "local:3"}, 3),
        ({"cluster": "tcp://host:8786"}, 1),
        ({"cluster": "slurm", "slurm": {"maximum": 5, "memory": "8GB", "cores": 4}}, 20),
        ({"cluster": "pbs", "pbs": {"maximum": 5, "memory": "8GB", "cores": 16, "gpus": 2}}, 10),
        ({"cluster": "slurm", "slurm": {"maximum": 2, "memory": "8GB", "processes": 3}}, 6),
        ({"cluster": "kubernetes", "kubernetes": {"image": "i", "maximum": 7, "memory": "1GB"}}, 7),
    ],
)
def test_a_plan_is_cut_for_the_workers_that_there_may_be(compute, num_workers):
    assert count_planned_workers(ComputeConfig.model_validate(compute)) == num_workers
