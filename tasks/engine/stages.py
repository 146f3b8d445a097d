"""The stages that the inputs of a shard pass, from admitting a file to encoding its masks.

Each is a method that takes an item and gives items; `schedule` runs them, in turns or at once.

What becomes of an image is carried by the image: a stage that fails on one records that, and goes
on with the next.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pixelmill.configs.schema import IngestConfig
from pixelmill.models.interface import ViewOutput
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.batches import (
    Batch,
    Batches,
    View,
    Work,
    checked,
    gives_same_bits,
    score_piecewise,
)
from pixelmill.tasks.engine.budget import ByteGate
from pixelmill.tasks.engine.decode import DecodedImage, DecodeError, decode_image, read_header
from pixelmill.tasks.engine.device import (
    Device,
    DeviceLostError,
    Upload,
    is_device_lost,
    is_out_of_memory,
)
from pixelmill.tasks.engine.gpu_decode import GpuImage, decode_on_gpu
from pixelmill.tasks.engine.merge import merge_views
from pixelmill.tasks.engine.networks import Models
from pixelmill.tasks.engine.reading import FileBytes, identify, read_with_retries
from pixelmill.tasks.engine.schedule import Stage
from pixelmill.tasks.engine.telemetry import BRIGHTNESS_BINS, brightness_bin
from pixelmill.tasks.engine.tuning import BatchSizes
from pixelmill.tasks.engine.views import Placement, decode_scale, draw_view, plan_views
from pixelmill.tasks.engine.watchdog import OverdueError, Watchdog
from pixelmill.tasks.predictions import ImagePrediction
from pixelmill.tasks.sources import read_bytes
from pixelmill.tasks.store import CatalogRow, FailureRow, ImageRow, ShardWriter

__all__ = ["InputCounts", "Row", "ShardStages"]

_CAUSES = {
    "deadline": "its worker ended itself twice because this image was not decoded in time",
    "memory": "its worker ended itself twice because this image took it beyond compute.memory",
}
# A batch for the GPU's decoder: so many files, or pixels
_GPU_FILES = 32
_GPU_PIXELS = 2**26

_KILLED = "the worker died again and again while this image was the only one in progress"


@dataclass(frozen=True, slots=True)
class Row:
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


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A file that has to be decoded.

    Attributes:
        models: indices of those that have not scored it.
    """

    row: Row
    content: FileBytes
    models: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Decoded:
    """An image with its pixels, at one scale, for some models."""

    row: Row
    image: ImageRow
    pixels: NDArray[np.uint8] | Tensor
    models: tuple[int, ...]
    scale: int


@dataclass(frozen=True, slots=True)
class _Forwarded:
    """A batch with the network's raw outputs, or with what the forward pass raised."""

    batch: Batch
    upload: Upload | None
    raw: Any = None
    error: Exception | None = None


@dataclass(slots=True)
class InputCounts:
    """What became of a model's inputs; they add up to the rows that ask for it.

    Attributes:
        scored: of which `empty` without a box, caption or label.
        duplicate: the same bytes as an earlier input of the shard.
        known: bytes that the model has scored before, under another name.
        failed: not read, not decoded, not scored, or left out.
    """

    scored: int = 0
    empty: int = 0
    duplicate: int = 0
    known: int = 0
    failed: int = 0


class ShardStages:
    """The stages of one attempt at a shard, and what they have found so far.

    Args:
        writer: of the shard.
        specs: the run's models.
        ingest: limits of the run.
        collection: of the run.
        device: that the networks run on.
        models: the networks.
        sizes: of the batches.
        watchdog: that watches the decoding.
        gate: bounds the pixels in flight, where images are decoded in several threads.
        is_published: whether a model, by key, has scored an image, by id, before.
    """

    def __init__(
        self,
        writer: ShardWriter,
        specs: Sequence[ModelSpec],
        ingest: IngestConfig,
        *,
        collection: str,
        device: Device,
        models: Models,
        sizes: BatchSizes,
        watchdog: Watchdog,
        gate: ByteGate | None,
        is_published: Callable[[str, str], bool],
    ) -> None:
        self._writer = writer
        self._specs = specs
        self._ingest = ingest
        self._collection = collection
        self._device = device
        self._sizes = sizes
        self._watchdog = watchdog
        self._gate = gate
        self._is_published = is_published
        self._lock = threading.Lock()
        self._batches = Batches(models.get, sizes, models.measure)
        self._condemned: dict[str, str] = {}
        self._claimed: set[tuple[str, int]] = set()
        self._open: dict[int, int] = {}
        self._plans: dict[tuple[tuple[int, int], int, int], tuple[Placement, ...]] = {}
        self._failures: list[tuple[int, FailureRow]] = []
        self._catalog: dict[int, CatalogRow] = {}
        self._sized: set[int] = set()
        self._for_gpu: list[_Admitted] = []
        self._gpu_pixels = 0
        self.counts = [InputCounts() for _ in specs]
        self.num_decoded = 0
        self.brightness = [0] * BRIGHTNESS_BINS

    def line(self) -> tuple[Stage, ...]:
        """The stages in their order; the first takes what `read_ahead` gives."""
        for_gpu = any(spec.preprocess.decode == "gpu" for spec in self._specs)
        gpu_decode = Stage("gpu_decode", self._gather_for_gpu, self._flush_to_gpu)
        return (
            Stage("admit", self._admit),
            *((gpu_decode,) if for_gpu else ()),
            Stage("decode", self._decode),
            Stage("transform", self._transform),
            Stage("batch", self._batches.add, self._batches.flush),
            Stage("copy", self._copy),
            Stage("forward", self._forward),
            Stage("read_out", self._read_out),
            Stage("post", self._post),
            Stage("encode", self._encode),
        )

    def rows_in_progress(self) -> set[int]:
        """Rows that were admitted and are not finished."""
        with self._lock:
            return set(self._open)

    def is_allowed(self, row: Row) -> bool:
        """Whether the listing lets the file be read; else its failure is recorded."""
        limit = self._ingest.max_file_bytes
        if row.size_bytes > limit:
            message = f"{row.size_bytes} bytes, more than ingest.max_file_bytes = {limit}"
            self._fail(row, "read", "too_many_bytes", message)
            return False
        width, height = row.width or 0, row.height or 0
        if width * height > self._ingest.max_pixels:
            limit = self._ingest.max_pixels
            message = f"{width} x {height}, more than ingest.max_pixels = {limit}"
            self._fail(row, "decode", "too_many_pixels", message)
            return False
        if max(width, height) > self._ingest.max_side:
            limit = self._ingest.max_side
            message = f"{width} x {height}, a side is longer than ingest.max_side = {limit}"
            self._fail(row, "decode", "side_too_long", message)
            return False
        return True

    def quarantine(self, row: Row, cause: str) -> None:
        """Leave out a row that has killed its worker, and copies of it that come later."""
        image_id = None
        with suppress(OSError):  # reading has not killed anybody
            data, _ = read_with_retries(read_bytes, row.source_uri)
            if len(data) == row.size_bytes:
                image_id = identify(data)
                self._condemned[image_id] = cause
                self._catalogue(row, image_id, row.width, row.height)
        self._fail(row, "worker", cause, _CAUSES.get(cause, _KILLED), image_id=image_id)

    def settle(self) -> None:
        """Hand failures and places to the writer, in the order of the plan."""
        for _, failure in sorted(self._failures, key=lambda item: item[0]):
            self._writer.add_failure(failure)
        for _, place in sorted(self._catalog.items()):
            self._writer.add_catalog(place)

    # --- the stages -------------------------------------------------------------------------------

    def _admit(self, item: tuple[Row, FileBytes | OSError]) -> Iterable[_Admitted]:
        """Which models need a file that was read; in the order of the rows."""
        row, content = item
        if isinstance(content, OSError):
            gone = isinstance(content, FileNotFoundError)
            reason = "not_found" if gone else "unreadable"
            self._fail(row, "read", reason, str(content), retryable=True)
            return ()
        if len(content.data) != row.size_bytes:
            message = f"listed with {row.size_bytes} bytes, read {len(content.data)}"
            self._fail(row, "read", "changed", message, retryable=True)
            return ()
        cause = self._condemned.get(content.image_id)
        if cause is not None:
            message = _CAUSES.get(cause, _KILLED)
            self._fail(row, "worker", cause, message, image_id=content.image_id)
            self._catalogue(row, content.image_id, row.width, row.height)
            return ()
        wanted = self._missing_models(row, content.image_id)
        if not wanted:
            self._catalogue(row, content.image_id, row.width, row.height)
            return ()
        with self._lock:
            self._open[row.index] = len(wanted)
        return (_Admitted(row, content, wanted),)

    def _missing_models(self, row: Row, image_id: str) -> tuple[int, ...]:
        """Indices of the models that have not scored these bytes, under whatever name."""
        missing = []
        for index in self._asked(row):
            if (image_id, index) in self._claimed:
                self.counts[index].duplicate += 1
            # Of an image_id that the plan knows, the planner has looked it up
            elif row.image_id != image_id and self._is_published(self._specs[index].key, image_id):
                self.counts[index].known += 1
            else:
                missing.append(index)
        self._claimed.update((image_id, index) for index in missing)
        return tuple(missing)

    def _asked(self, row: Row) -> list[int]:
        return [index for index in range(len(self._specs)) if row.model_mask >> index & 1]

    def _gather_for_gpu(self, item: _Admitted) -> Iterator[_Admitted | _Decoded]:
        """Files for models that want the GPU's pixels, by batches; for the others they go on."""
        wanted = tuple(
            index for index in item.models if self._specs[index].preprocess.decode == "gpu"
        )
        others = tuple(index for index in item.models if index not in wanted)
        if others:
            yield replace(item, models=others)
        if not wanted:
            return
        num_pixels = 0
        with suppress(DecodeError):  # decoding says what is wrong
            header = read_header(item.content.data)
            num_pixels = header.width * header.height
        if self._gpu_pixels + num_pixels > _GPU_PIXELS:
            yield from self._flush_to_gpu()
        self._for_gpu.append(replace(item, models=wanted))
        self._gpu_pixels += num_pixels
        if len(self._for_gpu) == _GPU_FILES:
            yield from self._flush_to_gpu()

    def _flush_to_gpu(self) -> Iterator[_Decoded]:
        items, self._for_gpu, self._gpu_pixels = self._for_gpu, [], 0
        if items:
            yield from self._decode_on_gpu(items)

    def _decode_on_gpu(self, items: list[_Admitted]) -> Iterator[_Decoded]:
        """Decode in one batch, or in halves where that takes too much memory or time."""
        found: Sequence[GpuImage | Exception]
        try:
            with self._watchdog.watching(items[0].row.index, factor=len(items)):
                found = decode_on_gpu(
                    [item.content.data for item in items],
                    self._device.device,
                    max_pixels=self._ingest.max_pixels,
                    max_side=self._ingest.max_side,
                    truncated=self._ingest.truncated,
                )
        except Exception as err:
            if is_out_of_memory(err):
                self._device.free_memory()
            elif not isinstance(err, OverdueError):
                raise _or_lost(err) from None
            found = [err]
        if len(found) < len(items):
            middle = len(items) // 2
            yield from self._decode_on_gpu(items[:middle])
            yield from self._decode_on_gpu(items[middle:])
            return
        for item, image in zip(items, found, strict=True):
            if isinstance(image, GpuImage):
                row, content, size = item.row, item.content, image.original_size
                self._note_decoded(row, content, size)
                image_row = self._image_row(row, content, size, image.flags)
                yield _Decoded(row, image_row, image.pixels, item.models, 1)
            else:
                self._fail_decode(item.row, item.content, image, item.models)

    def _decode(self, item: _Admitted | _Decoded) -> Iterator[_Decoded]:
        """Pixels, once for all models that want them at the same scale."""
        if isinstance(item, _Decoded):  # by the GPU
            yield item
            return
        row, content = item.row, item.content
        scales, num_bytes = self._scales(item)
        for scale, models in sorted(scales.items()):
            with self._gate.hold(num_bytes // scale**2) if self._gate else nullcontext():
                decoded = self._decoded(row, content, scale, models)
                if decoded is None:
                    continue
                self._note_decoded(row, content, decoded.original_size, decoded.pixels)
                image = self._image_row(row, content, decoded.original_size, decoded.flags)
                yield _Decoded(row, image, decoded.pixels, tuple(models), scale)

    def _scales(self, item: _Admitted) -> tuple[dict[int, list[int]], int]:
        """Models by the scale that they want the image at, and bytes of its pixels in full."""
        scales: dict[int, list[int]] = {}
        specs = [(index, self._specs[index]) for index in item.models]
        if self._gate or any(spec.preprocess.decode == "scaled" for _, spec in specs):
            with suppress(Exception):  # decoding says what is wrong
                header = read_header(item.content.data)
                for index, spec in specs:
                    scales.setdefault(decode_scale(header, spec), []).append(index)
                return scales, 3 * header.width * header.height
        return {1: list(item.models)}, 0

    def _decoded(
        self, row: Row, content: FileBytes, scale: int, models: Sequence[int]
    ) -> DecodedImage | None:
        try:
            with self._watchdog.watching(row.index):
                return decode_image(
                    content.data,
                    max_pixels=self._ingest.max_pixels,
                    max_side=self._ingest.max_side,
                    truncated=self._ingest.truncated,
                    scale=scale,
                )
        except (DecodeError, OverdueError, MemoryError) as err:
            self._fail_decode(row, content, err, models)
            return None

    def _note_decoded(
        self,
        row: Row,
        content: FileBytes,
        size: tuple[int, int],
        pixels: NDArray[np.uint8] | None = None,
    ) -> None:
        """Count an image, and where it lies, once for however many ways it is decoded in."""
        with self._lock:
            if row.index in self._sized:
                return
            self._sized.add(row.index)
            self.num_decoded += 1
            if pixels is not None:
                self.brightness[brightness_bin(pixels)] += 1
        height, width = size
        self._catalogue(row, content.image_id, width, height)

    def _image_row(
        self, row: Row, content: FileBytes, size: tuple[int, int], flags: tuple[str, ...]
    ) -> ImageRow:
        height, width = size
        return ImageRow(
            image_id=content.image_id,
            collection=self._collection,
            path=row.path,
            source_uri=row.source_uri,
            width=width,
            height=height,
            size_bytes=row.size_bytes,
            modified=row.modified,
            status=",".join(flags) or "ok",
        )

    def _fail_decode(
        self, row: Row, content: FileBytes, error: Exception, models: Sequence[int]
    ) -> None:
        """Some models get no pixels of an image."""
        if isinstance(error, DecodeError):
            reason: str = error.reason
        else:
            reason = "deadline" if isinstance(error, OverdueError) else "memory"
        self._fail(
            row, "decode", reason, str(error), image_id=content.image_id, models=models,
            retryable=reason == "memory",
        )  # fmt: skip
        if row.index not in self._sized:
            self._catalogue(row, content.image_id, row.width, row.height)

    def _transform(self, item: _Decoded) -> Iterator[View]:
        """Canvases; one that several models want alike is drawn once."""
        size = item.image.height, item.image.width
        wanted: dict[tuple[Placement, int, str, bool], list[tuple[int, Work, int]]] = {}
        for index in item.models:
            spec = self._specs[index]
            work = Work(item.row.index, item.image, spec, self._placements(size, index, item.scale))
            for number, placement in enumerate(work.placements):
                asked = spec.preprocess
                like = placement, asked.pad_value, asked.interpolation, asked.antialias
                wanted.setdefault(like, []).append((index, work, number))
        for (placement, *_), uses in wanted.items():
            preprocess = self._specs[uses[0][0]].preprocess
            try:
                with self._watchdog.watching(item.row.index):
                    canvas = draw_view(item.pixels, placement, preprocess)
            except (OverdueError, MemoryError) as err:
                for _, work, number in uses:
                    with self._lock:
                        is_done = work.take(number, err)
                    if is_done:
                        self._fail_work(work, "transform", err)
                continue
            for index, work, number in uses:
                if work.error is None:
                    yield View(index, work, number, canvas)

    def _placements(self, size: tuple[int, int], index: int, scale: int) -> tuple[Placement, ...]:
        """Of an image's views; images of one size share them."""
        placements = self._plans.get((size, index, scale))
        if placements is None:
            placements = plan_views(size, self._specs[index], scale)
            self._plans[size, index, scale] = placements
        return placements

    def _copy(self, batch: Batch) -> Iterable[_Forwarded]:
        try:
            upload = self._device.upload(batch.canvases, batch.size, batch.model.network.device)
        except Exception as err:  # no memory for it
            return (_Forwarded(batch, None, error=err),)
        return (_Forwarded(batch, upload),)

    def _forward(self, item: _Forwarded) -> Iterable[_Forwarded]:
        if item.upload is None:
            return (item,)
        model = item.batch.model
        try:
            with model.lock:
                raw = self._device.forward(model.network, item.upload)
        except Exception as err:
            return (replace(item, error=err),)
        return (replace(item, raw=raw),)

    def _read_out(self, item: _Forwarded) -> Iterable[Work]:
        """Predictions, by canvas, back to the images; those that are done by it come out."""
        batch, model, upload = item.batch, item.batch.model, item.upload
        results: Sequence[ViewOutput | Exception] = ()
        started = time.perf_counter()
        error = item.error
        if error is None and upload is not None:
            try:
                with self._device.reading(upload, item.raw):
                    outputs = checked(model.network.read_out(item.raw, batch.canvas), batch.size)
                    results = outputs[: len(batch.views)]
                self._judge(item, outputs)
            except Exception as err:
                error = err
        elif upload is not None:
            self._device.release(upload)
        if error is not None:
            if is_out_of_memory(error):
                self._device.free_memory()
            results = score_piecewise(
                model,
                batch.canvases,
                batch.size,
                error=error,
                run_short=functools.partial(self._sizes.limit, model.spec.key, batch.canvas),
            )
        device_s = 0.0 if upload is None else upload.forward_s
        elapsed_s = device_s + time.perf_counter() - started
        model.forward_s += elapsed_s
        model.device_s += device_s
        model.num_batches[batch.size] = model.num_batches.get(batch.size, 0) + 1
        if error is None and batch.check is None and batch.size == len(batch.views):
            self._sizes.observe(model.spec.key, batch.canvas, batch.size, elapsed_s)
        return self._handed_back(batch, results)

    def _judge(self, item: _Forwarded, outputs: list[ViewOutput]) -> None:
        """Compare a smaller batch size with this one, if that is wanted."""
        batch = item.batch
        if batch.check is None:
            return
        try:
            same = gives_same_bits(batch.model, batch.canvases, item.raw, outputs, batch.check)
        except Exception as err:
            if not is_out_of_memory(err):
                raise
            return  # two batches at once do not fit, which says nothing of one
        self._sizes.judge(batch.model.spec.key, batch.canvas, batch.size, batch.check, same)

    def _handed_back(self, batch: Batch, results: Sequence[ViewOutput | Exception]) -> list[Work]:
        with self._lock:
            return [
                view.work
                for view, result in zip(batch.views, results, strict=True)
                if view.work.take(view.index, result)
            ]

    def _post(self, work: Work) -> Iterable[tuple[Work, ImagePrediction]]:
        """One prediction in pixels of the original from all views of an image."""
        if work.error is not None:
            self._fail_work(work, "forward", work.error)
            return ()
        outputs = [output for output in work.outputs if output is not None]
        try:
            size = work.image.height, work.image.width
            prediction = merge_views(outputs, work.placements, work.spec, size)
        except Exception as err:
            self._fail_work(work, "merge", _or_lost(err))
            return ()
        return ((work, prediction),)

    def _encode(self, item: tuple[Work, ImagePrediction]) -> Iterable[Any]:
        """Compress the masks, and keep the rest for the tables."""
        work, prediction = item
        try:
            self._writer.add_image(work.image, work.spec.key, prediction)
        except Exception as err:
            self._fail_work(work, "merge", err)
            return ()
        with self._lock:
            counts = self.counts[self._index_of(work.spec)]
            counts.scored += 1
            counts.empty += _is_empty(prediction)
        self._close(work.row, 1)
        return ()

    # --- what became of the inputs ----------------------------------------------------------------

    def _index_of(self, spec: ModelSpec) -> int:
        return next(index for index, each in enumerate(self._specs) if each is spec)

    def _close(self, row: int, number: int) -> None:
        """So many models are done with a row."""
        with self._lock:
            self._open[row] -= number
            if self._open[row] <= 0:
                del self._open[row]

    def _catalogue(self, row: Row, image_id: str, width: int | None, height: int | None) -> None:
        place = CatalogRow(
            collection=self._collection,
            path=row.path,
            source_uri=row.source_uri,
            size_bytes=row.size_bytes,
            modified=row.modified,
            image_id=image_id,
            width=width,
            height=height,
        )
        with self._lock:
            self._catalog[row.index] = place

    def _fail_work(self, work: Work, stage: str, error: Exception) -> None:
        """One model could not score an image."""
        failure = FailureRow(
            collection=self._collection,
            path=work.image.path,
            source_uri=work.image.source_uri,
            stage=stage,
            reason=type(error).__name__,
            message=str(error),
            retryable=is_out_of_memory(error),
            size_bytes=work.image.size_bytes,
            modified=work.image.modified,
            image_id=work.image.image_id,
            model_key=work.spec.key,
        )
        with self._lock:
            self._failures.append((work.row, failure))
            self.counts[self._index_of(work.spec)].failed += 1
        self._close(work.row, 1)

    def _fail(
        self,
        row: Row,
        stage: str,
        reason: str,
        message: str,
        *,
        image_id: str | None = None,
        models: Sequence[int] | None = None,
        retryable: bool = False,
    ) -> None:
        """An input failed before it came to a model: for all that ask for it, or for some."""
        failure = FailureRow(
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
        )
        with self._lock:
            self._failures.append((row.index, failure))
            for index in self._asked(row) if models is None else models:
                self.counts[index].failed += 1
        if models is not None:
            self._close(row.index, len(models))


def _or_lost(error: Exception) -> Exception:
    """The error, if it is about an image.

    Raises:
        DeviceLostError: the device is of no more use.
    """
    if is_device_lost(error):
        raise DeviceLostError(str(error)) from error
    return error


def _is_empty(prediction: ImagePrediction) -> bool:
    detections = prediction.detections
    return not (
        (detections is not None and len(detections.scores))
        or prediction.captions
        or prediction.labels
        or prediction.semantic is not None
    )
