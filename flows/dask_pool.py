"""Shards on a Dask cluster: one that is started here, or one that already runs."""

import contextlib
import logging
import queue
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from multiprocessing import resource_tracker
from typing import Any

import dask.config
from distributed import Client, LocalCluster, Status, get_worker, secede
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker
from distributed.versions import get_versions
from distributed.worker import thread_state  # type: ignore[attr-defined]  # no __all__

from pixelmill.flows.environment import restored_threads, worker_threads
from pixelmill.flows.pool import Future, Outcome, ShardCall, count_cores, count_gpus, drain
from pixelmill.flows.signals import sigint_masked
from pixelmill.flows.versions import (
    Needs,
    WrongVersionsError,
    describe_difference,
    find_needs,
    refuse_others,
)
from pixelmill.tasks.store import ShardRef

__all__ = [
    "DaskPool",
    "call_on_worker",
    "check_versions",
    "connect",
    "quiet_logger",
    "start_cuda",
    "start_local",
]

GATHER_S = 60
CONNECT_S = 10


class DaskPool:
    """Workers of a Dask cluster.

    Futures carry a reference to a shard and results are counts: nothing large goes through the
    scheduler.

    Args:
        client: of the cluster.
        max_workers: that we start; 0 where the cluster is not ours.
        cluster: ours, to start workers again.
        needs: what workers that others have set up must have; none where they are copies of us.
    """

    is_isolated = True

    def __init__(
        self,
        client: Any,
        *,
        max_workers: int = 0,
        cluster: Any = None,
        needs: Needs | None = None,
    ) -> None:
        self.client = client
        self._num_workers = max_workers
        self._cluster = cluster
        self._needs = dict(needs or {})
        self._checked: set[str] = set()
        self._ended: queue.SimpleQueue[Future] = queue.SimpleQueue()

    @property
    def max_workers(self) -> int:
        """Workers that we started; 0 where the cluster is not ours."""
        return self._num_workers

    def slots(self) -> int:
        """GPUs where every worker declares its own, else threads.

        Raises:
            ConnectionError: the scheduler is gone.
            WrongVersionsError: a worker that has come since would get other results.
        """
        workers = self._workers()
        if self._needs and (new := workers.keys() - self._checked):
            _check_newcomers(self.client, self._needs, new)
        self._checked = set(workers)
        if self._by_gpu(workers):
            return sum(int(worker["resources"]["GPU"]) for worker in workers.values())
        return sum(int(worker["nthreads"]) for worker in workers.values())

    def check_workers(self) -> None:
        """Refuse a cluster of which somebody has other versions than we.

        Raises:
            WrongVersionsError: names the worker, what it has, and the remedy.
        """
        if self._needs:
            check_versions(self.client, self._needs)

    def submit(self, call: ShardCall, shard: ShardRef, ticket: str) -> Future:
        """Send a reference to a shard."""
        resources = {"GPU": 1} if self._by_gpu(self._workers()) else None
        key = f"score-{ticket}"
        needs = tuple(self._needs.items())
        future: Future = self.client.submit(
            call_on_worker, call, shard, needs, key=key, pure=False, resources=resources
        )
        future.add_done_callback(self._ended.put)
        return future

    def wait_any(self, timeout_s: float) -> list[Future]:
        """Futures that have ended since the last call."""
        return drain(self._ended, timeout_s)

    def outcome(self, future: Any) -> Outcome:
        """Killed is what Dask gave up after four dead workers; lost is what it cannot find.

        Raises:
            WrongVersionsError: a worker has other versions, or cannot even read what it is sent.
        """
        try:
            return Outcome("done", future.result(timeout=GATHER_S))
        except KilledWorker as err:
            return Outcome("killed", error=err)
        except (CancelledError, CommClosedError) as err:
            return Outcome("lost", error=err)
        except TimeoutError as err:
            # The shard's own, or ours: finished, but the worker died with the result.
            return Outcome("failed" if future.status == "error" else "lost", error=err)
        except Exception as err:
            if isinstance(err, WrongVersionsError | ImportError):
                self.check_workers()
            return Outcome("failed", error=err)

    def release(self, future: Any) -> None:
        """Drop the result from the cluster's memory."""
        future.release()

    def cancel(self, futures: Iterable[Any]) -> None:
        """Forget the futures; a running shard sees its task's state flip before its next batch."""
        with contextlib.suppress(Exception):  # a scheduler that is gone has nothing to cancel
            self.client.cancel(list(futures), force=True)

    def heal(self) -> bool:
        """Start the workers of a cluster of ours again."""
        if self._cluster is None:
            return False
        self._cluster.scale(self._num_workers)
        return True

    def _workers(self) -> dict[str, dict[str, Any]]:
        """Workers that are there, by their addresses.

        Raises:
            ConnectionError: the scheduler is gone.
        """
        info: Mapping[str, Any] = self.client.scheduler_info(n_workers=-1)
        # A client that gave up forgets all; asked of its status before, it may do so meanwhile
        if self.client.status not in ("running", "connecting") or "workers" not in info:
            raise ConnectionError("the Dask scheduler is gone; run the same command again")
        return dict(info["workers"])

    @staticmethod
    def _by_gpu(workers: Mapping[str, dict[str, Any]]) -> bool:
        return bool(workers) and all("GPU" in worker["resources"] for worker in workers.values())


def call_on_worker(call: ShardCall, shard: ShardRef, needs: tuple[tuple[str, str], ...]) -> Any:
    """Score a shard in a Dask worker, until Dask wants it no more.

    When it is scored its thread leaves the worker's pool, so that the next shard begins while it is
    committed. (Not where the task holds a GPU as a resource: Dask keeps that until it ends.)

    Raises:
        WrongVersionsError: this worker would get other results.
    """
    refuse_others(needs)
    return call(shard, should_stop=_unwanted(), on_scored=secede)


def _unwanted() -> Callable[[], bool]:
    """Whether Dask has cancelled the calling task, or given it to somebody else.

    Dask does not interrupt a running task, but the worker's record of it flips to `cancelled`
    within 0.1 s of `Client.cancel` or of the client's death. A worker whose time is up has handed
    its tasks back as soon as it begins to close. A look-up costs no message.
    """
    worker, key = get_worker(), thread_state.key
    tasks = worker.state.tasks

    def unwanted() -> bool:
        task = tasks.get(key)
        is_leaving = worker.status not in (Status.running, Status.paused)
        return is_leaving or task is None or task.state not in ("executing", "long-running")

    return unwanted


@contextlib.contextmanager
def start_local(num_workers: int) -> Iterator[DaskPool]:
    """Single-threaded worker processes on this machine."""
    threads = worker_threads(count_cores(), num_workers)
    options = {
        "n_workers": num_workers,
        "threads_per_worker": 1,
        "processes": True,
        # a worker above 80 % of a limit is paused, and a model that fills it pauses it for ever
        "memory_limit": 0,
        "dashboard_address": "127.0.0.1:0",
        "silence_logs": logging.ERROR,
    }
    with _own_cluster(LocalCluster, options, threads, num_workers) as pool:
        yield pool


@contextlib.contextmanager
def start_cuda() -> Iterator[DaskPool]:
    """One worker process per GPU of this machine."""
    from dask_cuda import LocalCUDACluster  # pyright: ignore[reportMissingImports]

    num_workers = count_gpus()
    threads = worker_threads(count_cores(), num_workers)
    options = {"memory_limit": 0, "dashboard_address": "127.0.0.1:0", "resources": {"GPU": 1}}
    with _own_cluster(LocalCUDACluster, options, threads, num_workers) as pool:
        yield pool


@contextlib.contextmanager
def _own_cluster(
    kind: Callable[..., Any], options: dict[str, Any], threads: dict[str, str], num_workers: int
) -> Iterator[DaskPool]:
    # Started by the first spawn otherwise, it would unblock SIGINT in the middle of the start.
    resource_tracker.ensure_running()
    spawning = {f"distributed.nanny.pre-spawn-environ.{name}": n for name, n in threads.items()}
    with contextlib.ExitStack() as stack:
        stack.enter_context(restored_threads())  # a restarted worker sets them in here again
        # Workers of ours are killed if they are slow to end: all they did is in the store
        stack.enter_context(quiet_logger("distributed.nanny", logging.ERROR))
        with restored_threads(), sigint_masked(), dask.config.set(spawning):
            cluster = stack.enter_context(kind(**options))
            client = stack.enter_context(Client(cluster, set_as_default=False))
        client.forward_logging("pixelmill", level=logging.INFO)
        yield DaskPool(client, max_workers=num_workers, cluster=cluster)


@contextlib.contextmanager
def quiet_logger(name: str, level: int) -> Iterator[None]:
    """While it lasts, a logger tells nothing below a level."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def connect(address: str, needs: Needs | None = None) -> Iterator[DaskPool]:
    """A cluster that somebody else runs.

    Args:
        address: of its scheduler.
        needs: what its workers must have; left out: what every model needs.

    Raises:
        ConnectionError: nobody answers.
        WrongVersionsError: the scheduler or a worker has other versions.
    """
    try:
        client = Client(address, set_as_default=False, timeout=CONNECT_S)
    except (OSError, TimeoutError) as err:
        raise ConnectionError(f"no Dask scheduler answers at {address}") from err
    with client:
        pool = DaskPool(client, needs=needs or find_needs())
        pool.check_workers()
        client.forward_logging("pixelmill", level=logging.INFO)
        yield pool


def check_versions(client: Any, needs: Needs) -> None:
    """Refuse a cluster whose workers would fail shard by shard, or get other results.

    Raises:
        WrongVersionsError: names the worker, what it has, and the remedy.
    """
    found = client.get_versions(packages=list(needs))
    _refuse_workers(client, needs, found["workers"])
    # It passes on what it is sent, and computes nothing
    passing = {name: needs[name] for name in ("dask", "distributed") if name in needs}
    if difference := describe_difference(passing, found["scheduler"]["packages"]):
        address = client.scheduler.address
        raise WrongVersionsError(f"the Dask scheduler at {address} {difference}")


def _check_newcomers(client: Any, needs: Needs, addresses: Collection[str]) -> None:
    """As `check_versions`, of these workers alone.

    All wait for the slowest answer, and one that is cut off keeps them until Dask gives it up.
    """
    reports = client.run(
        get_versions, packages=list(needs), workers=list(addresses), on_error="ignore"
    )
    _refuse_workers(client, needs, reports)


def _refuse_workers(client: Any, needs: Needs, reports: Mapping[str, Any]) -> None:
    for worker, report in reports.items():
        if difference := describe_difference(needs, report["packages"]):
            address = client.scheduler.address
            raise WrongVersionsError(f"worker {worker} of {address} {difference}")
