"""Scoring one shard: bytes are read and decoded once, and all models of the run fed from that.

Knows neither Prefect nor Dask: what it needs is in the store, what it finds goes there, and it
returns counts only. It may run twice, or on two workers at the same time; one of them commits.
"""

import ctypes
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pixelmill.configs.schema import ComputeConfig, IngestConfig
from pixelmill.tasks.engine.budget import Budget, ByteGate, plan_budget
from pixelmill.tasks.engine.crumbs import Crumbs, Trail
from pixelmill.tasks.engine.device import Device, DeviceLostError, pick_device
from pixelmill.tasks.engine.exclusion import SharedLock
from pixelmill.tasks.engine.gpu_decode import require_gpu_decoder
from pixelmill.tasks.engine.networks import Models
from pixelmill.tasks.engine.reading import ReadLimits, ReadStats, read_ahead
from pixelmill.tasks.engine.schedule import Lane, LaneStats, run_lanes
from pixelmill.tasks.engine.stages import Row, ShardStages
from pixelmill.tasks.engine.telemetry import BRIGHTNESS, Stats
from pixelmill.tasks.engine.tuning import DEFAULT_SIZE, batch_sizes
from pixelmill.tasks.engine.watchdog import (
    EXIT_CODE,
    OverdueError,
    Watchdog,
    peak_rss_bytes,
    rss_bytes,
)
from pixelmill.tasks.sources import read_bytes
from pixelmill.tasks.store import Receipt, RunRecord, ShardWriter, Store
from pixelmill.tasks.store.digests import contains

__all__ = ["ShardOutcome", "configure_process", "nothing", "score_shard"]

# Names of mallopt's parameters in malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# A whole image, alone, through all models, may take so many times ingest.max_decode_s
_LONE_FACTOR = 10
# Images that are looked at together on a GPU: breadcrumbs and stop flags are per so many
_GPU_WINDOW = 64
# Where the stages run at once: reading hides latency, postprocessing shares the GIL
_READ_THREADS = 16
_POST_THREADS = 2


@dataclass(frozen=True, slots=True)
class ShardOutcome:
    """What became of a shard; small, because it travels.

    Attributes:
        num_scored: images per model key.
        num_failed: failure rows.
        stats: seconds per stage (`read_s` is waiting for files), `images_per_s` and so on; those
            of the attempt that committed.
        cached: it had been committed before this call.
        stopped: it was told to stop; nothing of it is kept.
    """

    shard_id: str
    num_scored: Mapping[str, int]
    num_failed: int
    stats: Mapping[str, float | int | str]
    cached: bool = False
    stopped: bool = False


def configure_process() -> None:
    """Make this process score with one CPU thread, and keep its memory for the next batch.

    One single-threaded process per core scores 5 to 50 % more than one process with a thread per
    core, and keeps its speed beside other load.
    """
    torch.set_num_threads(1)
    _keep_large_blocks()


def _keep_large_blocks() -> None:
    """Have glibc reuse what a layer or a decoded image has left, instead of unmapping it.

    Dask starts its workers with MALLOC_TRIM_THRESHOLD_=65536, which also ends glibc's own learning:
    every block over 128 kB is mapped anew and its pages are zeroed one fault at a time. In such a
    worker a light network's images took 22 ms of the kernel's time each; with this, 2.
    """
    if sys.platform != "linux":
        return
    with suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 512 * 2**20)
        mallopt(_M_MMAP_THRESHOLD, 256 * 2**20)


# A process may work on several shards; a suspect of one must be alone in all of it
_IN_PROGRESS = SharedLock()
# One shard is written while the next is scored, and no more are held
_COMMITTING = threading.Lock()


def never() -> bool:
    """Go on."""
    return False


def nothing() -> None:
    """Nobody waits for it."""


def score_shard(
    root: str,
    run_id: str,
    shard_index: int,
    *,
    should_stop: Callable[[], bool] = never,
    on_scored: Callable[[], None] = nothing,
    device: str | None = None,
    may_exit: bool = False,
    overlap: bool | None = None,
) -> ShardOutcome:
    """Score what a shard's inputs lack, and commit it.

    An input that cannot be read, decoded or scored becomes a failure row and stops nothing. An
    input that kills the process is left out after it was alone in progress at two deaths.

    Args:
        root: of the store.
        run_id: of a run in it.
        shard_index: of a shard in the run's plan.
        should_stop: asked before each batch.
        on_scored: called when nothing is left but to write and commit, which leaves the processor
            idle for the most part: this process may begin another shard, in another thread. Not
            called before the shard before has been committed.
        device: "cpu", "cuda", "cuda:1"; None: a GPU if there is one.
        may_exit: whether this process may end itself, because somebody will start it again: when
            an image hangs it or takes it beyond its memory, or when its GPU is lost.
        overlap: whether the stages run at once, in threads; None: on a GPU. Changes no result.

    Raises:
        KeyError: no such run.
        OSError: the store, or a model's weights, cannot be read or written.
        ValueError: a model cannot be built from its spec, or memory does not hold it.
        DeviceLostError: the GPU is of no more use to this process.
    """
    started = time.perf_counter()
    store = Store(root)
    receipt = store.receipt(run_id, shard_index)
    if receipt is not None:
        return _outcome(receipt, cached=True)
    run = store.run(run_id)
    writer = ShardWriter(store, run, shard_index)
    crumbs = Crumbs(store.backend, run_id, writer.shard_id, writer.attempt)
    device = device or pick_device()
    try:
        scoring = _Scoring(
            store,
            run,
            writer,
            crumbs,
            device,
            may_exit,
            not device.startswith("cpu") if overlap is None else overlap,
        )
        if not scoring.run(_planned(store, run_id, shard_index), should_stop):
            writer.abort()
            crumbs.end()
            return ShardOutcome(writer.shard_id, {}, 0, {}, stopped=True)
        with _COMMITTING, _IN_PROGRESS.shared():
            on_scored()
            writing = time.perf_counter()
            writer.stage()
            now = time.perf_counter()
            receipt = writer.commit(scoring.stats(wall_s=now - started, write_s=now - writing))
    except DeviceLostError:
        # What was in progress stays suspected: an image may have done it
        writer.abort()
        if may_exit:
            crumbs.last_words("device_lost", None)
            os._exit(EXIT_CODE)
        raise
    except BaseException:
        writer.abort()
        crumbs.end()
        raise
    crumbs.clear()
    return _outcome(receipt, cached=receipt.attempt != writer.attempt)


def _outcome(receipt: Receipt, *, cached: bool) -> ShardOutcome:
    return ShardOutcome(
        receipt.shard_id, receipt.num_scored, receipt.num_failed, receipt.stats, cached=cached
    )


def _planned(store: Store, run_id: str, shard_index: int) -> list[Row]:
    table = store.shard_rows(run_id, shard_index).drop_columns(["shard"])
    return [Row(index=index, **row) for index, row in enumerate(table.to_pylist())]


@functools.lru_cache(maxsize=8)
def _published_ids(root: str, run_id: str, model_key: str) -> NDArray[np.bytes_]:
    """As they were when this process first asked in this run; the publisher drops what is new."""
    del run_id  # only there to ask anew in another run
    return Store(root).published_ids(model_key)


def _is_published(root: str, store: Store, run_id: str, model_key: str, image_id: str) -> bool:
    published = _published_ids(root, run_id, model_key)
    wanted = np.frombuffer(bytes.fromhex(image_id), "S16")
    return bool(contains(published, wanted)[0])


class _StoppedError(Exception):
    """It was told to stop."""


class _Scoring:
    """One attempt at a shard: what is read when, and which stages run where."""

    def __init__(
        self,
        store: Store,
        run: RunRecord,
        writer: ShardWriter,
        crumbs: Crumbs,
        device: str,
        may_exit: bool,
        overlap: bool,
    ) -> None:
        compute = ComputeConfig.model_validate(run.config.get("compute", {}))
        ingest = IngestConfig.model_validate(run.config.get("ingest", {}))
        self._run = run
        self._writer = writer
        self._crumbs = crumbs
        self._device = _open_device(device)
        self._overlap = overlap
        if any(spec.preprocess.decode == "gpu" for spec in run.models):
            require_gpu_decoder(self._device.device)
        self._watchdog = Watchdog(
            max_decode_s=ingest.max_decode_s,
            memory=compute.memory,
            last_words=crumbs.last_words,
            may_exit=may_exit,
        )
        sizes = batch_sizes(store.root, store.dataset_id, self._device.label)
        self._models = Models(run.models, self._device, sizes)
        self._budget = Budget()
        if compute.memory is not None:
            self._models.load_all()
            keys = tuple(spec.key for spec in run.models)
            self._budget = _budget_of(compute.memory, keys, device)
        self._stages = ShardStages(
            writer,
            run.models,
            ingest,
            collection=run.collection,
            device=self._device,
            models=self._models,
            sizes=sizes,
            watchdog=self._watchdog,
            gate=ByteGate(self._budget.pixels) if overlap else None,
            is_published=functools.partial(_is_published, store.root, store, run.run_id),
        )
        self._reading = ReadStats()
        self._read_s = 0.0
        self._lanes_did = LaneStats()

    def run(self, rows: Sequence[Row], should_stop: Callable[[], bool]) -> bool:
        """Score all rows.

        Returns:
            False if it was stopped before the end.
        """
        suspects = self._crumbs.suspects()
        for index, cause in sorted(suspects.guilty.items()):
            self._stages.quarantine(rows[index], cause)
        others = [row for row in rows if row.index not in {*suspects.guilty, *suspects.alone}]
        size = self._window()
        windows = [others[start : start + size] for start in range(0, len(others), size)]
        try:
            with self._watchdog:
                if suspects.alone:
                    with _IN_PROGRESS.alone():
                        for index in suspects.alone:
                            self._score_alone(rows[index], should_stop)
                with _IN_PROGRESS.shared():
                    self._score(windows, should_stop)
        except _StoppedError:
            return False
        self._crumbs.at([])
        self._stages.settle()
        return True

    def _score_alone(self, row: Row, should_stop: Callable[[], bool]) -> None:
        """Score one row with nothing beside it, so that it is known whether it kills."""
        lane = Lane(self._stages.line())
        try:
            with self._watchdog.watching(row.index, factor=_LONE_FACTOR):
                run_lanes([lane], self._source([[row]], should_stop), self._lanes_did)
        except OverdueError:
            pass  # it came back, and so it has its result

    def _score(self, windows: Sequence[Sequence[Row]], should_stop: Callable[[], bool]) -> None:
        run_lanes(self._lanes(), self._source(windows, should_stop), self._lanes_did)

    def _source(
        self, windows: Sequence[Sequence[Row]], should_stop: Callable[[], bool]
    ) -> Iterator[Any]:
        """Files in the order of the rows, each window under a note that is there before it."""
        allowed = [[row for row in window if self._stages.is_allowed(row)] for window in windows]
        files = read_ahead(
            (row for window in allowed for row in window),
            read_bytes,
            self._read_limits(),
            self._reading,
        )
        indices = [[row.index for row in window] for window in windows]
        with Trail(self._crumbs, indices, self._stages.rows_in_progress) as trail:
            for number, window in enumerate(allowed):
                if should_stop():
                    raise _StoppedError
                trail.enter(number)
                for _ in window:
                    started = time.perf_counter()
                    content = next(files)
                    self._read_s += time.perf_counter() - started
                    yield content
            if should_stop():
                raise _StoppedError

    def _read_limits(self) -> ReadLimits:
        if self._overlap:
            return ReadLimits(threads=_READ_THREADS, files=1024, num_bytes=self._budget.read)
        return ReadLimits(num_bytes=self._budget.read)

    def _window(self) -> int:
        auto = _GPU_WINDOW if self._device.is_gpu else DEFAULT_SIZE
        return max(
            auto if spec.batch_size == "auto" else spec.batch_size for spec in self._run.models
        )

    def _lanes(self) -> list[Lane]:
        """All stages in this thread, or each in its own and decoding in as many as there are."""
        line = self._stages.line()
        if not self._overlap:
            return [Lane(line)]
        admit, *gpu_decode, decode, transform, batch, copy, forward, read_out, post, encode = line
        views = self._count_views()
        return [
            Lane((admit,)),
            *(Lane((stage,), capacity=self._window()) for stage in gpu_decode),
            Lane((decode, transform), _decode_threads(), capacity=2 * _decode_threads()),
            Lane((batch, copy), capacity=views),
            Lane((forward,), capacity=2),
            Lane((read_out,), capacity=2),
            Lane((post,), _POST_THREADS, capacity=2 * self._window()),
            Lane((encode,), capacity=2 * self._window()),
        ]

    def _count_views(self) -> int:
        """Canvases that may wait for a batch to be formed."""
        largest = max(
            3 * height * width * max(spec.augmentation.scales) ** 2
            for spec in self._run.models
            for height, width in spec.preprocess.canvases
        )
        return max(2, min(2 * self._window(), int(self._budget.views / largest)))

    def stats(self, wall_s: float, write_s: float) -> Stats:
        """Measurements so far; `telemetry` says what each is."""
        did, stages, reading = self._lanes_did, self._stages, self._reading
        models = self._models.loaded()
        busy_s = did.busy_s.copy()
        if models:
            busy_s["batch"] -= self._models.load_s
            # A GPU's forward pass goes on when the stage that started it is done
            busy_s["forward"] = sum(model.forward_s for model in models)
        device_s = sum(model.device_s for model in models)
        stats: Stats = {
            "wall_s": wall_s,
            "load_s": self._models.load_s,
            "read_s": self._read_s,
            "read_busy_s": reading.busy_s,
            "read_bytes": reading.num_bytes,
            "read_bytes_per_s": reading.num_bytes / wall_s,
            "read_retries": reading.num_retries,
            "write_s": write_s,
            "write_bytes": self._writer.num_bytes,
            **{f"{name}_s": seconds for name, seconds in busy_s.items()},
            **{f"forward_s/{model.spec.key}": model.forward_s for model in models},
            **{f"engine/{model.spec.key}": model.network.engine_used for model in models},
            **{
                f"gate/{model.spec.key}": str(model.network.gate or "reference") for model in models
            },
            **{
                f"batch_size/{model.spec.key}": max(model.num_batches, key=model.num_batches.get)  # type: ignore[arg-type]
                for model in models
                if model.num_batches
            },
            "num_decoded": stages.num_decoded,
            "images_per_s": stages.num_decoded / wall_s,
            **{f"{BRIGHTNESS}{k}": n for k, n in enumerate(stages.brightness) if n},
            "device": self._device.name,
            "device_share": device_s / wall_s,
            "peak_rss_bytes": peak_rss_bytes() or 0,
        }
        for spec, counts in zip(self._run.models, stages.counts, strict=True):
            for name in ("empty", "duplicate", "known", "failed"):
                stats[f"num_{name}/{spec.key}"] = getattr(counts, name)
        if self._overlap:
            stats |= self._lane_stats()
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in stats.items()
        }

    def _lane_stats(self) -> Stats:
        did = self._lanes_did
        stats: Stats = {"threads/read": _READ_THREADS}
        for lane in self._lanes():
            stats |= {f"threads/{stage.name}": lane.threads for stage in lane.stages}
        stats |= {f"starved_s/{name}": seconds for name, seconds in did.starved_s.items()}
        stats |= {f"blocked_s/{name}": seconds for name, seconds in did.blocked_s.items()}
        for name, number in did.num_taken.items():
            stats[f"queue_mean/{name}"] = did.depth_sum[name] / max(1, number)
            stats[f"queue_max/{name}"] = did.depth_max[name]
        return stats


@functools.lru_cache(maxsize=8)
def _budget_of(memory: int, model_keys: tuple[str, ...], device: str) -> Budget:
    """As it is when these networks have just been loaded; later shards leave traces in memory."""
    del model_keys, device
    return plan_budget(memory, rss_bytes() or 0)


@functools.lru_cache(maxsize=4)
def _open_device(name: str) -> Device:
    """Kept by this process for the next shard, with its buffers and streams."""
    return Device(name)


def _decode_threads() -> int:
    """One per core that this process may use, but for two that feed the GPU and postprocess."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(2, cores - 2)
