"""Job scripts and manifests as they would be sent; and a queue of SLURM that runs them here."""

import functools
import os
import signal
import time
from datetime import timedelta
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from pixelmill.configs.schema import (
    ComputeConfig,
    KubernetesConfig,
    PbsConfig,
    SlurmConfig,
    StartedCluster,
)
from pixelmill.flows.clusters import job_options, lifetime_of, pod_spec
from pixelmill.flows.pool import open_pool
from pixelmill.flows.submit import run_shards
from pixelmill.flows.worker import score_reference
from pixelmill.tasks.store import publish

NUM_IMAGES = 24
OF_CLUSTER = ("name", "scheduler_options")

needs_jobqueue = pytest.mark.skipif(
    find_spec("dask_jobqueue") is None, reason="dask-jobqueue is not installed (extra hpc)"
)


@pytest.mark.parametrize(
    ("minutes", "lifetime_s", "stagger_s"),
    [(5, 180, 60), (60, 3300, 150), (24 * 60, 85_800, 300)],
)
def test_workers_leave_before_their_job_ends(minutes: int, lifetime_s: int, stagger_s: int):
    walltime = timedelta(minutes=minutes)
    assert lifetime_of(walltime) == (lifetime_s, stagger_s)
    assert lifetime_s + stagger_s <= walltime.total_seconds() - 60


def job_script(kind: StartedCluster, config: Any) -> list[str]:
    from dask_jobqueue import pbs, slurm

    build = slurm.SLURMJob if kind == "slurm" else pbs.PBSJob
    options = {k: v for k, v in job_options(kind, config).items() if k not in OF_CLUSTER}
    return build("tls://head:1", name="pixelmill-0", **options).job_script().splitlines()


@needs_jobqueue
def test_a_job_of_slurm_asks_for_what_the_block_says(tmp_path):
    config = SlurmConfig.model_validate(
        {
            "maximum": 8,
            "cores": 4,
            "memory": "16GiB",
            "walltime": "26:00:00",
            "queue": "long",
            "account": "vision",
            "interface": "ib0",
            "python": "/opt/venv/bin/python",
            "log_directory": str(tmp_path / "jobs"),
            "directives": ["--constraint=avx512"],
            "prologue": ["module load gcc"],
        }
    )
    script = job_script("slurm", config)
    head = {line for line in script if line.startswith("#SBATCH")}
    assert {
        "#SBATCH -p long",
        "#SBATCH -A vision",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=16G",
        "#SBATCH -t 26:00:00",
        "#SBATCH --constraint=avx512",
    } <= head
    assert "export DASK_DISTRIBUTED__WORKER__LIFETIME__DURATION=93000s" in script
    assert "export DASK_DISTRIBUTED__WORKER__LIFETIME__STAGGER=300s" in script
    assert script[-2] == "module load gcc"
    command = script[-1].split()
    assert command[:3] == ["/opt/venv/bin/python", "-m", "distributed.cli.dask_worker"]
    last = dict(pairwise(command))
    assert (last["--nworkers"], last["--nthreads"], last["--memory-limit"]) == ("4", "1", "0")
    assert last["--interface"] == "ib0"


@needs_jobqueue
@pytest.mark.parametrize(
    ("kind", "config", "line"),
    [
        ("slurm", SlurmConfig, "#SBATCH --gres=gpu:{}"),
        ("pbs", PbsConfig, "#PBS -l select=1:ncpus=8:ngpus={}:mem=15259mb"),
    ],
)
def test_a_worker_of_a_gpu_says_that_it_has_one(kind, config, line, tmp_path):
    block = {"maximum": 2, "cores": 8, "memory": "16GB", "log_directory": str(tmp_path)}
    one = job_script(kind, config.model_validate(block | {"gpus": 1}))
    assert line.format(1) in one
    assert "distributed.cli.dask_worker" in one[-1]
    assert "--resources GPU=1" in one[-1]
    assert "export OMP_NUM_THREADS=8" in one
    two = job_script(kind, config.model_validate(block | {"gpus": 2}))
    assert line.format(2) in two
    assert "dask_cuda.cli" in two[-1]
    assert "--resources GPU=1" in two[-1]
    assert "export OMP_NUM_THREADS=4" in two


@needs_jobqueue
def test_a_job_of_pbs_asks_for_what_the_block_says(tmp_path):
    config = PbsConfig.model_validate(
        {
            "maximum": 8,
            "cores": 4,
            "memory": "16GB",
            "queue": "workq",
            "account": "vision",
            "log_directory": str(tmp_path),
            "directives": ["-V"],
        }
    )
    head = {line for line in job_script("pbs", config) if line.startswith("#PBS")}
    assert {
        "#PBS -q workq",
        "#PBS -A vision",
        "#PBS -l select=1:ncpus=4:mem=15259mb",
        "#PBS -l walltime=01:00:00",
        "#PBS -V",
    } <= head


def test_a_cluster_of_pods_is_what_the_operator_takes():
    """Against the definition of the resource that comes with the operator."""
    operator = pytest.importorskip("dask_kubernetes.operator")
    jsonschema = pytest.importorskip("jsonschema")
    config = KubernetesConfig.model_validate(
        {
            "image": "registry/pixelmill:1",
            "maximum": 4,
            "cpu": 2,
            "memory": "4GiB",
            "gpus": 1,
            "env": {"AWS_REGION": "eu-central-1"},
            "secrets": ["bucket"],
            "claims": {"/images": "archive"},
            "pod": {"nodeSelector": {"gpu": "l4"}, "serviceAccountName": "pixelmill"},
        }
    )
    spec = pod_spec(config, "pixelmill-1")
    chart = Path(operator.__file__).parent / "deployment/helm/dask-kubernetes-operator"
    definition = yaml.safe_load((chart / "crds/daskcluster.yaml").read_text())
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    jsonschema.validate(spec, schema)

    worker = spec["spec"]["worker"]["spec"]
    (scorer,) = worker["containers"]
    assert scorer["command"] == ["python", "-m"]
    command = "distributed.cli.dask_worker --nthreads 1 --memory-limit 0 --resources GPU=1 --name"
    assert " ".join(scorer["args"]).startswith(command)
    limits = {"cpu": "2", "memory": str(4 * 2**30), "nvidia.com/gpu": "1"}
    assert scorer["resources"]["limits"] == limits
    env = {each["name"]: each["value"] for each in scorer["env"]}
    assert env["AWS_REGION"] == "eu-central-1"
    assert env["DASK_DISTRIBUTED__WORKER__DAEMON"] == "False"
    assert env["OMP_NUM_THREADS"] == "2"
    assert scorer["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    assert scorer["volumeMounts"] == [{"name": "claim-0", "mountPath": "/images"}]
    assert worker["volumes"][0]["persistentVolumeClaim"] == {"claimName": "archive"}
    assert worker["nodeSelector"] == {"gpu": "l4"}
    (passer,) = spec["spec"]["scheduler"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in passer["resources"]["requests"]
    assert "envFrom" not in passer
    assert passer["args"] == ["distributed.cli.dask_scheduler", "--host", "0.0.0.0"]
    assert spec["spec"]["worker"]["replicas"] == 0


SBATCH = r"""#!/bin/bash
exec 9>"$FAKE_QUEUE/lock"; flock 9
id=$(( $(cat "$FAKE_QUEUE/number" 2>/dev/null || echo 0) + 1 ))
echo $id > "$FAKE_QUEUE/number"
cp "$1" "$FAKE_QUEUE/$id.sh"
err=$(sed -n 's/^#SBATCH -e //p' "$1")
setsid bash "$FAKE_QUEUE/$id.sh" > /dev/null 2> "${err//%J/$id}" 9>&- &
echo $! > "$FAKE_QUEUE/$id.pid"
echo "Submitted batch job $id"
"""
SQUEUE = r"""#!/bin/bash
for file in "$FAKE_QUEUE"/*.pid; do
  state=$(cut -d' ' -f3 "/proc/$(cat "$file")/stat" 2>/dev/null)
  [ -n "$state" ] && [ "$state" != Z ] && basename "$file" .pid
done
exit 0
"""
SCANCEL = r"""#!/bin/bash
kill -TERM -- "-$(cat "$FAKE_QUEUE/$1.pid")"
"""


class FakeSlurm:
    """SLURM's commands, which run jobs at once as processes of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, script in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
            self.replace(name, script)

    def replace(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(script)
        path.chmod(0o755)

    def num_submitted(self) -> int:
        number = self.folder / "number"
        return int(number.read_text()) if number.exists() else 0

    def running(self) -> list[int]:
        """Process groups of jobs."""
        pids = [int(file.read_text()) for file in self.folder.glob("*.pid")]
        return [pid for pid in pids if is_alive(pid)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    folder = tmp_path / "queue"
    folder.mkdir()
    monkeypatch.setenv("FAKE_QUEUE", str(folder))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("pixelmill.flows.clusters.IDLE_S", 2)
    monkeypatch.setattr("pixelmill.flows.clusters.ASK_EVERY_S", 0.5)
    slurm = FakeSlurm(folder)
    yield slurm
    for pid in slurm.running():
        os.killpg(pid, signal.SIGKILL)


def open_jobs(folder: Path, **block: Any):
    jobs = {"maximum": 2, "memory": "2GB", "log_directory": str(folder / "jobs"), **block}
    compute = ComputeConfig.model_validate({"slurm": jobs, "cluster": "slurm"})
    return open_pool("slurm", 8, compute=compute)


@needs_jobqueue
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_jobs_score_all_though_a_walltime_kills_them_and_are_none_when_nothing_waits(
    slurm, images, plan_plainly, reference, assert_same_predictions, wait_for, tmp_path
):
    store, shards = plan_plainly(images, tmp_path / "store")
    killed: list[int] = []

    def kill_all(shard: object, result: object) -> None:
        if not killed:
            killed.extend(slurm.running())
            for pid in killed:
                os.killpg(pid, signal.SIGKILL)

    # Two workers in one job, whose names are not the job's
    with open_jobs(tmp_path, maximum=1, cores=2) as pool:
        assert pool.slots() == 0
        assert slurm.num_submitted() == 0
        submission = run_shards(
            pool,
            functools.partial(score_reference, store.root, "", is_isolated=True),
            shards,
            name=shards[0].run_id,
            on_done=kill_all,
        )
        wait_for(lambda: not slurm.running(), "end of jobs for which nothing waits")
    assert submission.num_done == len(shards)
    assert submission.failed == []
    assert len(killed) == 1
    assert slurm.num_submitted() == 2
    publish(store)
    assert_same_predictions(store.root, reference)
    assert not list((tmp_path / "jobs").glob("keys-*")), "keys of the run are left"


def wait_for_end(pool: Any) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        pool.slots()
        time.sleep(0.1)


@needs_jobqueue
@pytest.mark.slow
def test_jobs_that_cannot_start_a_worker_end_the_run_with_their_last_words(slurm, tmp_path):
    with (
        open_jobs(tmp_path, python="/no/python", minimum=2) as pool,
        pytest.raises(RuntimeError, match=r"ended before a worker came: .*/no/python: No such"),
    ):
        wait_for_end(pool)
    assert slurm.num_submitted() >= 3


@needs_jobqueue
@pytest.mark.slow
def test_a_job_that_is_not_taken_ends_the_run_with_the_reason(slurm, tmp_path):
    slurm.replace("sbatch", "#!/bin/bash\necho 'sbatch: error: Invalid account' >&2\nexit 1\n")
    with (
        open_jobs(tmp_path, minimum=1) as pool,
        pytest.raises(RuntimeError, match="sbatch does not take a job: sbatch: error: Invalid"),
    ):
        wait_for_end(pool)
