"""Scoring one shard: bytes are read and decoded once, and all models of the run fed from that.

Knows neither Prefect nor Dask: what it needs is in the store, what it finds goes there, and it
returns counts only. It may run twice, or on two workers at the same time; one of them commits.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pixelmill.configs.schema import IngestConfig
from pixelmill.models.build import load_network
from pixelmill.models.interface import ViewOutput
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.batches import Batches, Work, is_out_of_memory
from pixelmill.tasks.engine.crumbs import Crumbs
from pixelmill.tasks.engine.decode import DecodedImage, DecodeError, decode_image
from pixelmill.tasks.engine.merge import merge_views
from pixelmill.tasks.engine.reading import FileBytes, read_ahead
from pixelmill.tasks.engine.views import draw_view, plan_views
from pixelmill.tasks.sources import read_bytes
from pixelmill.tasks.store import CatalogRow, FailureRow, ImageRow, Receipt, ShardWriter, Store

__all__ = ["ShardOutcome", "configure_process", "pick_device", "score_shard"]

Stats = dict[str, float | int | str]


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
    """Make this process score with one CPU thread.

    One single-threaded process per core scores 5 to 50 % more than one process with a thread per
    core, and keeps its speed beside other load.
    """
    torch.set_num_threads(1)


def pick_device() -> str:
    """The GPU that this process sees first, or the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def never() -> bool:
    """Go on."""
    return False


def score_shard(
    root: str,
    run_id: str,
    shard_index: int,
    *,
    should_stop: Callable[[], bool] = never,
    device: str | None = None,
) -> ShardOutcome:
    """Score what a shard's inputs lack, and commit it.

    An input that cannot be read, decoded or scored becomes a failure row and stops nothing. An
    input that kills the process is left out after it was alone in progress at two deaths.

    Args:
        root: of the store.
        run_id: of a run in it.
        shard_index: of a shard in the run's plan.
        should_stop: asked before each batch.
        device: "cpu", "cuda", "cuda:1"; None: a GPU if there is one.

    Raises:
        KeyError: no such run.
        OSError: the store, or a model's weights, cannot be read or written.
        ValueError: a model cannot be built from its spec.
    """
    started = time.perf_counter()
    store = Store(root)
    receipt = store.receipt(run_id, shard_index)
    if receipt is not None:
        return _outcome(receipt, receipt.stats, cached=True)
    run = store.run(run_id)
    writer = ShardWriter(store, run, shard_index)
    crumbs = Crumbs(store.backend, run_id, writer.shard_id, writer.attempt)
    rows = _planned(store, run_id, shard_index)
    scorer = _ShardScorer(
        writer,
        run.models,
        IngestConfig.model_validate(run.config.get("ingest", {})),
        collection=run.collection,
        device=device or pick_device(),
        is_published=functools.partial(_is_published, root, store, run_id),
    )
    try:
        is_complete = scorer.run(rows, crumbs, should_stop)
        if not is_complete:
            writer.abort()
            crumbs.end()
            return ShardOutcome(writer.shard_id, {}, 0, {}, stopped=True)
        stats = scorer.stats(wall_s=time.perf_counter() - started)
        receipt = writer.commit(stats)
    except BaseException:
        writer.abort()
        crumbs.end()
        raise
    crumbs.clear()
    return _outcome(receipt, receipt.stats, cached=receipt.attempt != writer.attempt)


def _outcome(receipt: Receipt, stats: Stats, *, cached: bool) -> ShardOutcome:
    return ShardOutcome(
        receipt.shard_id, receipt.num_scored, receipt.num_failed, stats, cached=cached
    )


def _planned(store: Store, run_id: str, shard_index: int) -> "list[_Row]":
    table = store.shard_rows(run_id, shard_index).drop_columns(["shard"])
    return [_Row(index=index, **row) for index, row in enumerate(table.to_pylist())]


@functools.lru_cache(maxsize=8)
def _published_ids(root: str, run_id: str, model_key: str) -> NDArray[np.bytes_]:
    """As they were when this process first asked in this run; the publisher drops what is new."""
    del run_id  # only there to ask anew in another run
    return Store(root).published_ids(model_key)


def _is_published(root: str, store: Store, run_id: str, model_key: str, image_id: str) -> bool:
    ids = _published_ids(root, run_id, model_key)
    wanted = np.frombuffer(bytes.fromhex(image_id), "S16")
    position = int(np.searchsorted(ids, wanted)[0])
    return position < len(ids) and ids[position] == wanted[0]


@dataclass(frozen=True, slots=True)
class _Row:
    """An input of the shard: a row of the plan."""

    index: int
    path: str
    source_uri: str
    size_bytes: int
    modified: str
    width: int | None
    height: int | None
    image_id: str | None
    model_mask: int


class _ShardScorer:
    """The state of one attempt at a shard."""

    def __init__(
        self,
        writer: ShardWriter,
        specs: Sequence[ModelSpec],
        ingest: IngestConfig,
        *,
        collection: str,
        device: str,
        is_published: Callable[[str, str], bool],
    ) -> None:
        self._writer = writer
        self._specs = specs
        self._ingest = ingest
        self._collection = collection
        self._device = device
        self._is_published = is_published
        self._batches: dict[int, Batches] = {}
        self._scored: set[tuple[str, int]] = set()
        self._seconds: dict[str, float] = {}
        self._num_decoded = 0

    def run(self, rows: Sequence[_Row], crumbs: Crumbs, should_stop: Callable[[], bool]) -> bool:
        """Score all rows.

        Returns:
            False if it was stopped before the end.
        """
        suspects = crumbs.suspects()
        for index in sorted(suspects.guilty):
            self._quarantine(rows[index])
        alone = [rows[index] for index in suspects.alone]
        apart = suspects.guilty.union(suspects.alone)
        others = [row for row in rows if row.index not in apart]
        size = max(8 if spec.batch_size == "auto" else spec.batch_size for spec in self._specs)
        windows = [[row] for row in alone]
        windows += [others[start : start + size] for start in range(0, len(others), size)]
        readable = [row for window in windows for row in window if self._is_allowed(row)]
        files = read_ahead(readable, read_bytes)
        allowed = {row.index for row in readable}
        for number, window in enumerate(windows):
            if should_stop():
                return False
            crumbs.at({row.index for row in window} | self._rows_in_progress())
            for row in window:
                if row.index in allowed:
                    with self._timed("read_s"):
                        _, content = next(files)
                    self._take(row, content)
            if number < len(alone):
                self._flush()
        if should_stop():
            return False
        crumbs.at(self._rows_in_progress())
        self._flush()
        crumbs.at([])
        return True

    def stats(self, wall_s: float) -> Stats:
        """Measurements so far."""
        forward = {
            f"forward_s/{batches.spec.key}": round(batches.forward_s, 4)
            for batches in self._batches.values()
        }
        return {
            "wall_s": round(wall_s, 4),
            **{name: round(seconds, 4) for name, seconds in self._seconds.items()},
            "forward_s": round(sum(forward.values()), 4),
            **forward,
            "num_decoded": self._num_decoded,
            "images_per_s": round(self._num_decoded / wall_s, 2),
            "device": self._device,
        }

    def _rows_in_progress(self) -> set[int]:
        return {row for batches in self._batches.values() for row in batches.rows}

    def _is_allowed(self, row: _Row) -> bool:
        """Whether the listing lets the file be read; else its failure is recorded."""
        limit = self._ingest.max_file_bytes
        if row.size_bytes > limit:
            message = f"{row.size_bytes} bytes, more than ingest.max_file_bytes = {limit}"
            self._fail(row, "read", "too_many_bytes", message)
            return False
        limit = self._ingest.max_pixels
        if row.width and row.height and row.width * row.height > limit:
            message = f"{row.width} x {row.height}, more than ingest.max_pixels = {limit}"
            self._fail(row, "decode", "too_many_pixels", message)
            return False
        return True

    def _take(self, row: _Row, content: FileBytes | OSError) -> None:
        """Bring a file as far as full batches take it."""
        if isinstance(content, OSError):
            gone = isinstance(content, FileNotFoundError)
            reason = "not_found" if gone else "unreadable"
            self._fail(row, "read", reason, str(content), retryable=True)
            return
        if len(content.data) != row.size_bytes:
            message = f"listed with {row.size_bytes} bytes, read {len(content.data)}"
            self._fail(row, "read", "changed", message, retryable=True)
            return
        wanted = self._missing_models(row, content.image_id)
        if not wanted:
            self._catalogue(row, content.image_id, row.width, row.height)
            return
        decoded = self._decode(row, content)
        if decoded is None:
            return
        height, width = decoded.original_size
        self._catalogue(row, content.image_id, width, height)
        self._num_decoded += 1
        image = ImageRow(
            image_id=content.image_id,
            collection=self._collection,
            path=row.path,
            source_uri=row.source_uri,
            width=width,
            height=height,
            size_bytes=row.size_bytes,
            modified=row.modified,
            status=",".join(decoded.flags) or "ok",
        )
        for index in wanted:
            self._scored.add((content.image_id, index))
            self._add_views(row, image, decoded, index)

    def _missing_models(self, row: _Row, image_id: str) -> list[int]:
        """Indices of the models that have not scored these bytes, under whatever name."""
        missing = [
            index
            for index in range(len(self._specs))
            if row.model_mask >> index & 1 and (image_id, index) not in self._scored
        ]
        if row.image_id == image_id:
            return missing  # the planner has looked it up
        return [i for i in missing if not self._is_published(self._specs[i].key, image_id)]

    def _decode(self, row: _Row, content: FileBytes) -> DecodedImage | None:
        try:
            with self._timed("decode_s"):
                return decode_image(content.data, max_pixels=self._ingest.max_pixels)
        except DecodeError as err:
            self._fail(row, "decode", err.reason, str(err), image_id=content.image_id)
        except MemoryError as err:
            self._fail(row, "decode", "memory", str(err), image_id=content.image_id, retryable=True)
        self._catalogue(row, content.image_id, row.width, row.height)
        return None

    def _add_views(self, row: _Row, image: ImageRow, decoded: DecodedImage, index: int) -> None:
        batches = self._batches_of(index)
        spec = batches.spec
        work = Work(row.index, image, plan_views((image.height, image.width), spec))
        for view_index, placement in enumerate(work.placements):
            if work.error is not None:
                break
            with self._timed("transform_s"):
                canvas = draw_view(decoded.pixels, placement, spec.preprocess)
            for done in batches.add(work, view_index, canvas):
                self._finish(done, spec)

    def _batches_of(self, index: int) -> Batches:
        if index not in self._batches:
            with self._timed("load_s"):
                network = load_network(self._specs[index], self._device)
            self._batches[index] = Batches(self._specs[index], network)
        return self._batches[index]

    def _flush(self) -> None:
        for batches in self._batches.values():
            for work in batches.flush():
                self._finish(work, batches.spec)

    def _finish(self, work: Work, spec: ModelSpec) -> None:
        error: Exception | None = work.error
        stage = "forward"
        if error is None:
            stage = "merge"
            outputs: list[ViewOutput] = [each for each in work.outputs if each is not None]
            try:
                with self._timed("post_s"):
                    size = (work.image.height, work.image.width)
                    prediction = merge_views(outputs, work.placements, spec, size)
                    self._writer.add_image(work.image, spec.key, prediction)
            except Exception as err:
                error = err
        if error is not None:
            self._fail(
                work.image,
                stage,
                type(error).__name__,
                str(error),
                model_key=spec.key,
                retryable=is_out_of_memory(error),
            )

    def _catalogue(self, row: _Row, image_id: str, width: int | None, height: int | None) -> None:
        self._writer.add_catalog(
            CatalogRow(
                collection=self._collection,
                path=row.path,
                source_uri=row.source_uri,
                size_bytes=row.size_bytes,
                modified=row.modified,
                image_id=image_id,
                width=width,
                height=height,
            )
        )

    def _quarantine(self, row: _Row) -> None:
        message = "the worker died twice while this image was the only one in progress"
        self._fail(row, "worker", "killed_worker", message)

    def _fail(
        self,
        row: _Row | ImageRow,
        stage: str,
        reason: str,
        message: str,
        *,
        image_id: str | None = None,
        model_key: str | None = None,
        retryable: bool = False,
    ) -> None:
        self._writer.add_failure(
            FailureRow(
                collection=self._collection,
                path=row.path,
                source_uri=row.source_uri,
                stage=stage,
                reason=reason,
                message=message,
                retryable=retryable,
                size_bytes=row.size_bytes,
                modified=row.modified,
                image_id=image_id or row.image_id,
                model_key=model_key,
            )
        )

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self._seconds[name] = self._seconds.get(name, 0.0) + elapsed
