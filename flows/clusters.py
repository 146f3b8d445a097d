"""Clusters that a run starts for itself: jobs of SLURM or PBS, pods on Kubernetes.

Both grow by what waits and shrink when nothing does, and both may have to wait for hours until
somebody else's work has gone. So nobody is given up here for want of workers, unless they fail.
"""

import contextlib
import getpass
import logging
import math
import os
import re
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import dask.config
from distributed import Client, Security, Status
from distributed.deploy.adaptive import Adaptive

from pixelmill.configs.schema import ComputeConfig, JobsConfig, KubernetesConfig, StartedCluster
from pixelmill.flows.dask_pool import DaskPool, quiet_logger
from pixelmill.flows.environment import DEFAULTS, worker_threads
from pixelmill.flows.versions import Needs, find_needs

__all__ = ["JobsPool", "job_options", "lifetime_of", "pod_spec", "start_cluster"]

logger = logging.getLogger(__name__)

# A job that waited for hours is not given back because nothing waits for a moment
IDLE_S = 60
# Queues are asked about jobs without workers only, and not more often
ASK_EVERY_S = 30.0
_ASK_TIMEOUT_S = 20.0
_MAX_FAILED_JOBS = 3
# Until one is measured; Dask would take half a second, and ask for one worker for a whole queue
_SHARD_DURATION = "60s"
# Heals of two minutes each: half an hour in which no pod came
_MAX_HEALS = 15
# Of pods whose run was killed; longer than a backfill gives way to a night
_ORPHANED_S = 8 * 3600


@dataclass(frozen=True, slots=True)
class Queue:
    """A queueing system, and how it is asked.

    Attributes:
        cluster: class of dask-jobqueue.
        listing: command that prints the numbers of a user's jobs; the user's name goes last.
    """

    cluster: str
    listing: tuple[str, ...]


QUEUES: Mapping[str, Queue] = {
    "slurm": Queue("SLURMCluster", ("squeue", "--noheader", "--format=%A", "--user")),
    "pbs": Queue("PBSCluster", ("qselect", "-u")),
}


def start_cluster(
    kind: StartedCluster, compute: ComputeConfig, needs: Needs | None = None
) -> contextlib.AbstractContextManager[DaskPool]:
    """The cluster that a block of `compute` describes; it ends with the context.

    Args:
        kind: that there is a block for.
        compute: with the block.
        needs: what its workers must have; left out: what every model needs.

    Raises:
        RuntimeError: it cannot be started; says why.
    """
    config, needs = getattr(compute, kind), needs or find_needs()
    if kind == "kubernetes":
        return _start_pods(config, needs)
    return _start_jobs(kind, config, needs)


def lifetime_of(walltime: timedelta) -> tuple[int, int]:
    """Seconds after which workers of a job leave, and by how much that may vary.

    A twelfth of the job is kept for its start and its end, but two minutes at least and ten at
    most; half of it is the spread, so that not all leave together.
    """
    margin = min(max(walltime.total_seconds() / 12, 120), 600)
    return round(walltime.total_seconds() - margin), round(margin / 2)


def job_options(kind: StartedCluster, config: JobsConfig) -> dict[str, Any]:
    """A block as the arguments of dask-jobqueue's classes.

    What a block leaves out is as the site's own jobqueue.yaml has it.
    """
    options: dict[str, Any] = {
        "name": "pixelmill",
        "job_name": "pixelmill",
        "cores": config.cores,
        "memory": str(int(config.memory)),
        "processes": config.num_workers,
        "walltime": _clock(config.walltime),
        "queue": config.queue,
        "account": config.account,
        "interface": config.interface,
        "python": config.python,
        "log_directory": str(_log_folder(config)),
        "scheduler_options": {"dashboard_address": "127.0.0.1:0", "port": config.port},
        "job_script_prologue": [*_exports(config), *config.prologue],
        "job_extra_directives": list(config.directives),
        # The last one counts. Above 80 % of a limit a worker would be paused, if need be for ever
        "worker_extra_args": ["--nthreads", "1", "--memory-limit", "0"],
    }
    if config.gpus:
        options["worker_extra_args"] += ["--resources", "GPU=1"]
        if config.gpus > 1:  # shares the GPUs of a job among its workers
            options["worker_command"] = "dask_cuda.cli"
        if kind == "slurm":
            options["job_extra_directives"].insert(0, f"--gres=gpu:{config.gpus}")
    if kind == "pbs":
        gpus = f":ngpus={config.gpus}" if config.gpus else ""
        options["resource_spec"] = (
            f"select=1:ncpus={config.cores}{gpus}:mem={-(-config.memory // 2**20)}mb"
        )
    return options


def _exports(config: JobsConfig) -> list[str]:
    """What workers have to know before Dask is imported."""
    lifetime, stagger = lifetime_of(config.walltime)
    variables = {
        **_dask_settings(),
        "DASK_DISTRIBUTED__WORKER__LIFETIME__DURATION": f"{lifetime}s",
        "DASK_DISTRIBUTED__WORKER__LIFETIME__STAGGER": f"{stagger}s",
        **worker_threads(config.cores, config.num_workers),
    }
    return [f"export {name}={value}" for name, value in variables.items()]


def _dask_settings() -> dict[str, str]:
    """The settings of ours that concern Dask, for processes that do not import us first."""
    return {
        name: os.environ.get(name, value)
        for name, value in DEFAULTS.items()
        if name.startswith("DASK_")
    }


def _log_folder(config: JobsConfig) -> Path:
    return Path(config.log_directory).expanduser().resolve()


def _clock(duration: timedelta) -> str:
    minutes, seconds = divmod(round(duration.total_seconds()), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"


class JobsPool(DaskPool):
    """Workers in jobs of a queueing system.

    Dask does not learn that a job has ended, so a queue is asked about jobs that have no workers.
    One that has ended is forgotten, and another is submitted in its place if it is wanted.

    Args:
        client: of the cluster.
        cluster: of dask-jobqueue.
        kind: slurm or pbs.
        config: its block.
        needs: what workers must have.
    """

    def __init__(
        self, client: Any, cluster: Any, kind: str, config: JobsConfig, needs: Needs
    ) -> None:
        super().__init__(client, max_workers=config.max_workers, cluster=cluster, needs=needs)
        self._queue = QUEUES[kind]
        self._logs = _log_folder(config)
        self._asked_at = float("-inf")
        self._seen: set[str] = set()
        self._num_failed = 0

    def slots(self) -> int:
        """As of every cluster.

        Raises:
            RuntimeError: jobs end before their workers come, or are not taken.
        """
        slots = super().slots()
        self._replace_ended_jobs()
        return slots

    def heal(self) -> bool:
        """Jobs wait for their turn, however long that takes."""
        waiting = len(self._cluster.workers)
        logger.warning("no worker yet; %d jobs wait in the queue", waiting)
        return True

    def _replace_ended_jobs(self) -> None:
        jobs = dict(self._cluster.workers)
        workers = {str(worker["name"]) for worker in self._workers().values()}
        present = {_job_of(name) for name in workers} & jobs.keys()
        if present - self._seen:
            self._num_failed = 0
        self._seen |= present
        absent = jobs.keys() - present
        if not absent or time.monotonic() - self._asked_at < ASK_EVERY_S:
            return
        self._asked_at = time.monotonic()
        queued = self._ask_queue()
        if queued is None:
            return
        ended = {name: jobs[name] for name in absent if jobs[name].job_id not in queued}
        for name, job in ended.items():
            if name in self._seen:
                self._seen.remove(name)
                logger.info("job %s has ended", job.job_id)
            else:
                self._note_failure(job, is_only=len(ended) == len(jobs) and not self._seen)
        if ended:
            self._cluster.loop.add_callback(_forget, self._cluster, ended)

    def _ask_queue(self) -> set[str] | None:
        """Numbers of our jobs; None if the queue does not answer, which happens to the best."""
        command = [*self._queue.listing, getpass.getuser()]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=_ASK_TIMEOUT_S
            )
        except (OSError, subprocess.SubprocessError) as err:
            logger.warning("could not ask the queue: %s", err)
            return None
        return set(re.findall(r"^\s*(\d+)", done.stdout, re.MULTILINE))

    def _note_failure(self, job: Any, *, is_only: bool) -> None:
        """Count a job that had no worker, and end the run if there is no hope for others.

        Raises:
            RuntimeError: with what the job, or who did not take it, said last.
        """
        self._num_failed += 1
        if job.refusal is not None:
            told = f"{job.submit_command} does not take a job: {job.refusal}"
            hopeless = is_only
        else:
            told = f"job {job.job_id} ended before a worker came: {self._last_words(job.job_id)}"
            hopeless = False
        if hopeless or self._num_failed >= _MAX_FAILED_JOBS:
            raise RuntimeError(told)
        logger.warning("%s", told)

    def _last_words(self, job_id: str) -> str:
        """The last line that a job has printed, and where there may be more."""
        files = sorted(self._logs.glob(f"*{job_id}*"), key=lambda file: file.suffix != ".err")
        for file in files:
            lines = file.read_text(errors="replace").strip().splitlines()
            if lines:
                return f"{lines[-1]} ({file})"
        return f"it left no word in {self._logs}"


def _forget(cluster: Any, jobs: Mapping[str, Any]) -> None:
    """Take jobs that have ended from a cluster's books; runs in its event loop."""
    for name, job in jobs.items():
        job.status = Status.closed
        cluster.worker_spec.pop(name, None)
        cluster.workers.pop(name, None)


def _job_of(worker: str) -> str:
    """Name of the job that a worker of this name is in: its own, or without its number there."""
    return worker.rpartition("-")[0] if worker.count("-") > 1 else worker


def _job_of_state(worker: Any) -> str:
    """Workers of one job leave together; runs in the scheduler."""
    return _job_of(str(worker.name))


def _by_job(adaptive: Any) -> Any:
    """Dask's scaling, which counts workers, in whole jobs.

    Asked for one worker where a job has four, Dask would cancel a job that waits, because that is
    three too many, and submit it again: it would lose its place in the queue every minute.
    """

    class ByJob(adaptive):  # type: ignore[misc]
        @property
        def plan(self) -> set[str]:
            return set(self.cluster.worker_spec)

        @property
        def requested(self) -> set[str]:
            return set(self.cluster.workers) & self.plan

        @property
        def observed(self) -> set[str]:
            return {_job_of(name) for name in self._workers()} & self.plan

        async def target(self) -> int:
            return math.ceil(await super().target() / self._per_job())

        async def workers_to_close(self, target: int) -> list[str]:
            names = await super().workers_to_close(target * self._per_job())
            return list({_job_of(name) for name in names})

        async def scale_up(self, n: int) -> None:
            self.cluster.scale(jobs=n)

        async def scale_down(self, workers: Collection[str]) -> None:
            theirs = [name for name in self._workers() if _job_of(name) in workers]
            await super().scale_down([*workers, *theirs])

        def _workers(self) -> list[str]:
            workers = self.cluster.scheduler_info["workers"].values()
            return [str(worker["name"]) for worker in workers]

        def _per_job(self) -> int:
            return len(self.cluster.new_spec.get("group", [""]))

    return ByJob


def _telling(job: Any) -> Any:
    """A job class that keeps why a job was not taken, where Dask would print a traceback."""

    class TellingJob(job):  # type: ignore[misc]
        refusal: str | None = None

        async def start(self) -> None:
            try:
                await super().start()
            except (RuntimeError, ValueError, OSError) as err:
                lines = str(err).strip().splitlines() or [type(err).__name__]
                self.refusal = lines[-1]
                self.status = Status.running

    return TellingJob


@contextlib.contextmanager
def _start_jobs(kind: StartedCluster, config: JobsConfig, needs: Needs) -> Iterator[DaskPool]:
    import dask_jobqueue

    build = getattr(dask_jobqueue, QUEUES[kind].cluster)
    settings = {
        # We ask the queue; Dask would cancel a job because its worker is slow to start again
        "distributed.deploy.lost-worker-timeout": "1000 days",
        "distributed.scheduler.default-task-durations": {"score": _SHARD_DURATION},
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        options = job_options(kind, config)
        options["job_cls"] = _telling(build.job_cls)
        options["security"] = stack.enter_context(_keys(_log_folder(config)))
        cluster = stack.enter_context(_closing(build(**options)))
        cluster.adapt(
            Adaptive=_by_job(Adaptive),
            minimum=config.minimum,
            maximum=config.maximum,
            interval="1s",
            wait_count=IDLE_S,
            worker_key=_job_of_state,
        )
        client = stack.enter_context(Client(cluster, set_as_default=False))
        client.forward_logging("pixelmill", level=logging.INFO)
        yield JobsPool(client, cluster, kind, config, needs)


@contextlib.contextmanager
def _keys(folder: Path) -> Iterator[Security]:
    """A certificate for this run, which jobs read from files that only their user may read.

    Whoever reaches a scheduler without one runs code as its user, and login nodes have many users.
    """
    made = Security.temporary()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="keys-", dir=folder) as private:
        certificate, key = Path(private, "certificate.pem"), Path(private, "key.pem")
        certificate.write_text(str(made.tls_ca_file))
        key.write_text(str(made.tls_worker_key))
        roles = ("client", "scheduler", "worker")
        yield Security(
            require_encryption=True,
            tls_ca_file=str(certificate),
            **{f"tls_{role}_cert": str(certificate) for role in roles},
            **{f"tls_{role}_key": str(key) for role in roles},
        )


@contextlib.contextmanager
def _closing(cluster: Any) -> Iterator[Any]:
    """End a cluster, without tracebacks of streams that its jobs close as they are cancelled."""
    try:
        yield cluster
    finally:
        with quiet_logger("distributed.scheduler", logging.CRITICAL):
            cluster.close()


class PodsPool(DaskPool):
    """Workers in pods, which the operator starts, and starts again.

    Args:
        client: of the cluster.
        cluster: of dask-kubernetes.
        max_workers: pods at once.
        needs: what workers must have.
    """

    def __init__(self, client: Any, cluster: Any, *, max_workers: int, needs: Needs) -> None:
        super().__init__(client, max_workers=max_workers, cluster=cluster, needs=needs)
        self._num_heals = 0

    def heal(self) -> bool:
        """Pods wait for a node, for half an hour at most."""
        self._num_heals += 1
        logger.warning(
            "no worker yet: `kubectl get pods -l dask.org/cluster-name=%s` tells why",
            self._cluster.name,
        )
        return self._num_heals <= _MAX_HEALS


def pod_spec(config: KubernetesConfig, name: str) -> dict[str, Any]:
    """A block as the DaskCluster that the operator is given.

    Both containers run Python's modules, whatever the image's entry point is.
    """
    from dask_kubernetes.operator import make_cluster_spec

    amounts = {"cpu": f"{config.cpu:g}", "memory": str(int(config.memory))}
    arguments = ["distributed.cli.dask_worker", "--nthreads", "1", "--memory-limit", "0"]
    if config.gpus:
        amounts["nvidia.com/gpu"] = str(config.gpus)
        arguments += ["--resources", "GPU=1"]
    threads = worker_threads(int(config.cpu), 1)
    spec: dict[str, Any] = make_cluster_spec(
        name=name,
        image=config.image,
        n_workers=config.minimum,
        resources={"requests": amounts, "limits": amounts},
        env={**_dask_settings(), **threads, **config.env},
        worker_command=" ".join(arguments),
        idle_timeout=_ORPHANED_S,
    )
    worker, scheduler = (spec["spec"][part]["spec"] for part in ("worker", "scheduler"))
    (scorer,), (passer,) = worker["containers"], scheduler["containers"]
    for container in (scorer, passer):
        container["command"] = ["python", "-m"]
    passer["args"][0] = "distributed.cli.dask_scheduler"
    passer["env"] = [
        *passer["env"],
        {
            "name": "DASK_DISTRIBUTED__SCHEDULER__UNKNOWN_TASK_DURATION",
            "value": _SHARD_DURATION,
        },
    ]
    passer["resources"] = {"requests": {"cpu": "1", "memory": str(2**30)}}
    scorer["envFrom"] = [{"secretRef": {"name": secret}} for secret in config.secrets]
    scorer["volumeMounts"] = [
        {"name": f"claim-{index}", "mountPath": folder}
        for index, folder in enumerate(config.claims)
    ]
    worker["volumes"] = [
        {"name": f"claim-{index}", "persistentVolumeClaim": {"claimName": claim}}
        for index, claim in enumerate(config.claims.values())
    ]
    worker.update(config.pod)
    return spec


@contextlib.contextmanager
def _start_pods(config: KubernetesConfig, needs: Needs) -> Iterator[DaskPool]:
    from dask_kubernetes.operator import KubeCluster

    spec = pod_spec(config, f"pixelmill-{uuid.uuid4().hex[:8]}")
    with contextlib.ExitStack() as stack:
        try:
            build: Callable[..., Any] = KubeCluster
            cluster = stack.enter_context(
                build(custom_cluster_spec=spec, namespace=config.namespace, quiet=True)
            )
        except Exception as err:
            # of a client for a cluster there are as many kinds of errors as ways to reach it
            raise RuntimeError(
                f"Kubernetes starts no DaskCluster ({type(err).__name__}: {err}): `kubectl auth "
                "can-i create daskclusters` tells whether you may, and docs/clusters.md what it "
                "needs"
            ) from err
        if config.minimum < config.maximum:
            cluster.adapt(minimum=config.minimum, maximum=config.maximum)
        client = stack.enter_context(Client(cluster, set_as_default=False))
        client.forward_logging("pixelmill", level=logging.INFO)
        yield PodsPool(client, cluster, max_workers=config.max_workers, needs=needs)
