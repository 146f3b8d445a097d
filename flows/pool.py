"""Where shards are scored: in this process or on a Dask cluster, alike for the submit loop."""

import contextlib
import logging
import os
import queue
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from pixelmill.configs.schema import (
    STARTED_CLUSTERS,
    ComputeConfig,
    JobsConfig,
    KubernetesConfig,
)
from pixelmill.flows.versions import Needs
from pixelmill.tasks.store import ShardRef

__all__ = [
    "Future",
    "InlinePool",
    "Outcome",
    "Pool",
    "ShardCall",
    "check_cluster",
    "choose_cluster",
    "count_cores",
    "count_gpus",
    "count_planned_workers",
    "count_workers",
    "open_pool",
]

logger = logging.getLogger(__name__)

_PROBE_S = 5.0

Fate = Literal["done", "failed", "killed", "lost"]


class ShardCall(Protocol):
    """Scores a shard; asks `should_stop` between batches.

    Once it has called `on_scored`, if it gets one, its worker may be given another shard.
    """

    def __call__(
        self,
        shard: ShardRef,
        /,
        *,
        should_stop: Callable[[], bool],
        on_scored: Callable[[], None] = ...,
    ) -> Any:
        """Score it; what comes back is small."""
        ...


class Future(Protocol):
    """What a pool's futures have in common."""

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        """Call `fn` with the future when it has ended, however."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a shard ended.

    Attributes:
        fate: done; failed with an exception of its own; killed with its workers; lost by the
            cluster without anybody's fault.
    """

    fate: Fate
    result: Any = None
    error: BaseException | None = None


class Pool(Protocol):
    """A place that scores shards."""

    @property
    def is_isolated(self) -> bool:
        """Whether shards are scored by processes that may die, and are started again."""
        ...

    @property
    def max_workers(self) -> int:
        """Workers that there may be at most; more than `slots` while a cluster grows."""
        ...

    def slots(self) -> int:
        """Shards that can be scored at the same time just now."""
        ...

    def submit(self, call: ShardCall, shard: ShardRef, ticket: str) -> Future:
        """Have a shard scored; `ticket` is unique."""
        ...

    def wait_any(self, timeout_s: float) -> list[Future]:
        """Futures that have ended since the last call; waits for one at most `timeout_s`."""
        ...

    def outcome(self, future: Future) -> Outcome:
        """How an ended future ended."""
        ...

    def release(self, future: Future) -> None:
        """Forget a future's result everywhere."""
        ...

    def cancel(self, futures: Iterable[Future]) -> None:
        """Drop what waits and tell what runs to stop; it does within a batch."""
        ...

    def heal(self) -> bool:
        """Start workers again, where they are ours to start."""
        ...


class InlinePool:
    """One thread of this process, for debugging: no start-up cost and no isolation.

    What crashes a decoder ends the run.
    """

    is_isolated = False
    max_workers = 1

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="pixelmill-shard")
        self._stop = threading.Event()
        self._ended: queue.SimpleQueue[Future] = queue.SimpleQueue()

    def slots(self) -> int:
        """One."""
        return 1

    def submit(self, call: ShardCall, shard: ShardRef, ticket: str) -> Future:
        """Queue a shard for the thread."""
        del ticket
        future = self._executor.submit(call, shard, should_stop=self._stop.is_set)
        future.add_done_callback(self._ended.put)
        return future

    def wait_any(self, timeout_s: float) -> list[Future]:
        """Futures that have ended since the last call."""
        return drain(self._ended, timeout_s)

    def outcome(self, future: Any) -> Outcome:
        """Done, failed, or lost if it was cancelled."""
        if future.cancelled():
            return Outcome("lost", error=RuntimeError("cancelled"))
        if error := future.exception():
            return Outcome("failed", error=error)
        return Outcome("done", future.result())

    def release(self, future: Future) -> None:
        """Nothing is held."""

    def cancel(self, futures: Iterable[Any]) -> None:
        """Drop what is queued; the running shard stops before its next batch."""
        self._stop.set()
        for future in futures:
            future.cancel()

    def heal(self) -> bool:
        """A thread does not die."""
        return True

    def close(self) -> None:
        """Wait for the running shard to stop."""
        self._stop.set()
        self._executor.shutdown(wait=True, cancel_futures=True)


def drain(ended: "queue.SimpleQueue[Future]", timeout_s: float) -> list[Future]:
    """Everything in a queue, after waiting at most `timeout_s` for the first."""
    try:
        futures = [ended.get(timeout=timeout_s)]
    except queue.Empty:
        return []
    with contextlib.suppress(queue.Empty):
        while True:
            futures.append(ended.get_nowait())
    return futures


@contextlib.contextmanager
def open_pool(
    cluster: str,
    num_shards: int,
    *,
    compute: ComputeConfig | None = None,
    needs: Needs | None = None,
) -> Iterator[Pool]:
    """The pool that a `ComputeConfig.cluster` names; closed at the end.

    Args:
        cluster: auto | inline | local | local:<n> | cuda | tcp://host:port | slurm | pbs |
            kubernetes.
        num_shards: to score; more workers than that are not started.
        compute: with the block of a cluster that is started by one.
        needs: what workers that others have set up must have; see `find_needs`.

    Raises:
        ValueError: no such cluster.
        ConnectionError: the scheduler does not answer.
        RuntimeError: its workers cannot work for us, or it cannot be started.
    """
    chosen = choose_cluster(cluster)
    if chosen == "inline":
        logger.warning(
            "cluster inline scores in this process, for debugging: an image that crashes its "
            "decoder ends the run"
        )
        pool = InlinePool()
        try:
            yield pool
        finally:
            pool.close()
        return
    with _open_dask(chosen, num_shards, compute or ComputeConfig(), needs) as dask:
        yield dask


def check_cluster(cluster: str) -> None:
    """Find out within seconds, before the work, what would keep a cluster from being there.

    Dask's client would wait for a scheduler to come, and so would every retry of the stage.

    Args:
        cluster: as in `ComputeConfig`.

    Raises:
        ValueError: nobody listens where a scheduler is said to be, or what a cluster is started
            with is not installed.
    """
    if cluster in _STARTED_WITH:
        _check_tools(cluster)
    address = re.fullmatch(r"(?:tcp|tls)://(?:\[(.+)\]|([^:/]+)):(\d+)/?", cluster)
    if address is None:
        return
    host, port = address[1] or address[2], int(address[3])
    try:
        socket.create_connection((host, port), timeout=_PROBE_S).close()
    except (OSError, OverflowError) as err:
        raise ValueError(
            f"no Dask scheduler answers at {cluster} ({err}): start one by `dask scheduler`, or "
            "give the address that it prints"
        ) from err


# Module, extra that installs it, and program that has to be there too
_STARTED_WITH: dict[str, tuple[str, str, str | None]] = {
    "cuda": ("dask_cuda", "cuda", None),
    "slurm": ("dask_jobqueue", "hpc", "sbatch"),
    "pbs": ("dask_jobqueue", "hpc", "qsub"),
    "kubernetes": ("dask_kubernetes", "kubernetes", None),
}


def _check_tools(cluster: str) -> None:
    module, extra, program = _STARTED_WITH[cluster]
    if find_spec(module) is None:
        raise ValueError(f"cluster {cluster} needs: pip install 'pixelmill[{extra}]'")
    if program is not None and shutil.which(program) is None:
        raise ValueError(
            f"cluster {cluster} needs {program}, which is not on the PATH: run this where jobs are "
            "submitted, such as a login node"
        )


def _open_dask(
    cluster: str, num_shards: int, compute: ComputeConfig, needs: Needs | None
) -> contextlib.AbstractContextManager[Any]:
    from pixelmill.flows import dask_pool  # half a second that an inline run does not need

    if "://" in cluster:
        return dask_pool.connect(cluster, needs)
    if cluster in STARTED_CLUSTERS:
        from pixelmill.flows.clusters import start_cluster

        return start_cluster(cluster, compute, needs)
    if cluster == "cuda":
        return dask_pool.start_cuda()
    return dask_pool.start_local(min(count_workers(cluster), num_shards))


def choose_cluster(cluster: str) -> str:
    """What `auto` means here; anything else is checked and returned.

    Never this process: an image that crashes a decoder would end the run. A cluster of one worker
    starts in 0.8 s more than a bare process, beside the 4 s that either takes to import torch.

    Raises:
        ValueError: no such cluster.
    """
    if cluster != "auto":
        names = ("inline", "cuda", *STARTED_CLUSTERS)
        if cluster in names or "://" in cluster or count_workers(cluster):
            return cluster
        raise ValueError(
            "cluster must be auto, inline, local, local:<n>, cuda, tcp://host:port, slurm, pbs or "
            f"kubernetes, got {cluster!r}"
        )
    if count_gpus() > 1 and find_spec("dask_cuda"):
        return "cuda"
    return "local:1" if count_gpus() else "local"


def count_workers(cluster: str) -> int:
    """Worker processes of `local` (one per core) or `local:<n>`; 0 if it is neither."""
    kind, _, number = cluster.partition(":")
    if kind != "local" or (number and not number.isdecimal()):
        return 0
    return int(number) if number else count_cores()


def count_planned_workers(compute: ComputeConfig) -> int:
    """Workers that a cluster will have at most; 1 where only its scheduler knows."""
    chosen = choose_cluster(compute.cluster)
    if chosen in STARTED_CLUSTERS:
        block: JobsConfig | KubernetesConfig = getattr(compute, chosen)
        return block.max_workers
    return max(1, count_gpus() if chosen == "cuda" else count_workers(chosen))


def count_cores() -> int:
    """Cores that this process may use; a container's limit counts."""
    from dask.system import CPU_COUNT

    return int(CPU_COUNT)


def count_gpus() -> int:
    """NVIDIA GPUs, without touching CUDA.

    A CUDA context in the parent would put every worker's model on the first GPU
    (NVIDIA-NeMo/Curator issue 284).
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device not in ("", "-1")])
    devices = Path("/proc/driver/nvidia/gpus")
    return len(list(devices.iterdir())) if devices.is_dir() else 0
