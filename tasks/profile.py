"""A short sample through the real engine, beside what its parts could do alone."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pixelmill.configs.schema import RunConfig, ShardConfig
from pixelmill.models.build import load_network
from pixelmill.models.interface import Network, ViewOutput
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.decode import DecodeError, decode_image, read_header
from pixelmill.tasks.engine.device import pick_device
from pixelmill.tasks.engine.merge import merge_views
from pixelmill.tasks.engine.score import configure_process, score_shard
from pixelmill.tasks.engine.stage_table import StageLine, stage_lines
from pixelmill.tasks.engine.telemetry import Stats, bottleneck
from pixelmill.tasks.engine.tuning import DEFAULT_SIZE
from pixelmill.tasks.engine.views import Placement, decode_scale, draw_view, plan_views
from pixelmill.tasks.ingest import KNOWN_COLUMNS, Listing, describe_files
from pixelmill.tasks.plan import plan_run, save_plan
from pixelmill.tasks.sources import SourceListing, list_images, read_bytes
from pixelmill.tasks.store import Store

__all__ = ["Limits", "Profile", "StageTimer", "measure_limits", "profile_sample", "spread_rows"]

# Scored first, uncounted: networks are loaded, batch sizes found, kernels chosen
_NUM_WARM = 8
# Enough for a mean, few enough to be held in memory
_NUM_LIMIT_FILES = 32


@dataclass(frozen=True, slots=True)
class Limits:
    """Images per second that one worker could do if it did nothing else.

    Attributes:
        decode: decoding for all models.
        forward: by model key: the forward pass on canvases that are there.
        stages_s: seconds per image of decode, transform, forward and post, one after the other.
        bound: what these allow: on a CPU core they share it, so one over their sum; on a GPU the
            smaller of the forward passes' rate and that of all decoding threads.
    """

    decode: float
    forward: Mapping[str, float]
    stages_s: Mapping[str, float]
    bound: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What a sample showed.

    Attributes:
        device: that it was scored on.
        num_images: of the sample.
        wall_s: of the sample, from its first byte to its commit, loading left out.
        images_per_s: of one worker.
        stages: of the sample.
        stats: of its receipt.
        limits: measured on some of the same images afterwards.
        bottleneck: one line.
    """

    device: str
    num_images: int
    wall_s: float
    images_per_s: float
    stages: tuple[StageLine, ...]
    stats: Mapping[str, float | int | str]
    limits: Limits
    bottleneck: str


def profile_sample(
    source: str,
    specs: Sequence[ModelSpec],
    config: RunConfig,
    root: str,
    *,
    num_images: int = 64,
    max_seconds: float = 20.0,
    device: str | None = None,
) -> Profile:
    """Score a sample of a folder in this process, and measure its limits.

    Args:
        source: folder or URL of the images; the sample is spread evenly over its listing.
        specs: models.
        config: its `ingest` and `compute` hold.
        root: of a store of its own for the sample, which nobody else uses.
        num_images: in the sample.
        max_seconds: about as long is scored; at the measured speed a slow model gets fewer images.
        device: "cpu", "cuda", "cuda:1"; None: a GPU if there is one.

    Raises:
        ValueError: the source has too few images that can be scored.
        OSError: the source or the models' weights cannot be read.
    """
    configure_process()
    device = device or pick_device()
    found = list_images(source, config.ingest)
    rows = spread_rows(found.images.num_rows, _NUM_WARM + num_images)
    if len(rows) < 2:
        raise ValueError(f"a profile needs 2 images at least, {source!r} has {len(rows)}")
    store = Store(root, create=True)
    known = store.table("catalog", columns=KNOWN_COLUMNS)
    sample = SourceListing(found.images.take(rows), found.problems)
    listing = describe_files(sample, config.ingest, known)
    num_warm = min(_NUM_WARM, len(rows) // 2)

    def score(first: int, count: int) -> Stats:
        images = listing.images.slice(first, count)
        part = Listing(images, listing.problems)
        plan = plan_run(
            store,
            part,
            specs,
            config.model_copy(update={"shard": ShardConfig(max_images=count, max_pixels=10**12)}),
            collection=f"sample-{first}",
            source=source,
            date="1970-01-01",
        )
        run = save_plan(store, plan)
        return dict(score_shard(store.root, run.run_id, 0, device=device).stats)

    warm = score(0, num_warm)
    rate = num_warm / max(1e-9, _scoring_s(warm))
    count = int(min(len(rows) - num_warm, max(num_warm, rate * max_seconds)))
    stats = score(num_warm, count)
    if not stats.get("num_decoded"):
        raise ValueError(f"none of {count} images of {source!r} could be decoded")
    uris = listing.images["source_uri"].slice(num_warm, min(count, _NUM_LIMIT_FILES)).to_pylist()
    limits = measure_limits(
        [read_bytes(uri) for uri in uris], specs, device, max_pixels=config.ingest.max_pixels
    )
    seconds = _scoring_s(stats)
    return Profile(
        device=str(stats["device"]),
        num_images=int(stats["num_decoded"]),
        wall_s=seconds,
        images_per_s=int(stats["num_decoded"]) / seconds,
        stages=stage_lines(stats),
        stats=stats,
        limits=limits,
        bottleneck=bottleneck(stats),
    )


def spread_rows(num_rows: int, count: int) -> list[int]:
    """At most `count` row numbers, evenly over all of them; the first 8 are spread as evenly.

    Neighbours in a listing are often alike, and the first ones are scored on their own.
    """
    count = min(count, num_rows)
    chosen = [index * num_rows // count for index in range(count)]
    stride = max(1, -(-count // _NUM_WARM))
    return [each for start in range(stride) for each in chosen[start::stride]]


def measure_limits(
    files: Sequence[bytes], specs: Sequence[ModelSpec], device: str, *, max_pixels: int
) -> Limits:
    """Time each part of the work alone, on files that are in memory.

    Args:
        files: encoded images; those that cannot be decoded are left out.
        specs: models.
        device: that their networks run on.
        max_pixels: as `decode_image` takes it.

    Raises:
        ValueError: none of the files can be decoded.
    """
    timer = StageTimer(files, specs, device, max_pixels=max_pixels)
    timer.run()  # warm
    seconds = timer.run()
    num_files = len(timer.files)
    per_image = {stage: value / num_files for stage, value in seconds.items()}
    stages = {
        name: sum(value for stage, value in per_image.items() if stage.partition("/")[0] == name)
        for name in ("decode", "transform", "forward", "post")
    }
    forward = {
        stage.partition("/")[2]: 1 / value
        for stage, value in per_image.items()
        if stage.startswith("forward/")
    }
    if device.startswith("cpu"):
        bound = 1 / sum(stages.values())
    else:
        bound = 1 / max(stages["forward"], stages["decode"] / _num_threads())
    return Limits(1 / stages["decode"], forward, stages, bound)


@dataclass(frozen=True, slots=True)
class _View:
    """A canvas, and the number of the image that is on it."""

    image: int
    placement: Placement
    canvas: NDArray[np.uint8]


class _Laps:
    """Seconds by stage, each since the end of the one before."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._last = clock()

    def end(self, stage: str) -> None:
        """What was done since the last call was this stage."""
        now = self._clock()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


class StageTimer:
    """The stages of the engine one after the other, with nothing around them.

    Args:
        files: encoded images.
        specs: models.
        device: that their networks run on.
        max_pixels: as `decode_image` takes it.

    Attributes:
        files: that can be decoded.
    """

    def __init__(
        self,
        files: Sequence[bytes],
        specs: Sequence[ModelSpec],
        device: str,
        *,
        max_pixels: int,
    ) -> None:
        self._max_pixels = max_pixels
        self._device = device
        self._models = [(spec, load_network(spec, device)) for spec in specs]
        # CPU seconds do not see what other programs do to the clock; a GPU's work has none
        self._clock: Callable[[], float] = time.perf_counter
        if device.startswith("cpu"):
            self._clock = time.process_time
        self.files = [data for data in files if self._is_sound(data)]
        if not self.files:
            raise ValueError(f"none of {len(files)} files can be decoded")

    def run(self) -> dict[str, float]:
        """Do all the work once.

        Returns:
            Seconds by stage: decode, `transform/<model key>`, `forward/…`, `post/…`.
        """
        laps = _Laps(self._clock)
        placed: list[list[_View]] = [[] for _ in self._models]
        for index, data in enumerate(self.files):
            header = read_header(data)
            scales = [decode_scale(header, spec) for spec, _ in self._models]
            decoded = {
                scale: decode_image(data, max_pixels=self._max_pixels, scale=scale)
                for scale in sorted(set(scales))
            }
            laps.end("decode")
            for (spec, _), scale, views in zip(self._models, scales, placed, strict=True):
                image = decoded[scale]
                for placement in plan_views(image.original_size, spec, scale):
                    canvas = draw_view(image.pixels, placement, spec.preprocess)
                    views.append(_View(index, placement, canvas))
                laps.end(f"transform/{spec.key}")
        for (spec, network), views in zip(self._models, placed, strict=True):
            self._score(views, spec, network, laps)
        return laps.seconds

    def _score(
        self, views: Sequence[_View], spec: ModelSpec, network: Network, laps: _Laps
    ) -> None:
        outputs: dict[int, list[tuple[ViewOutput, Placement]]] = {}
        for batch in _batches(views, spec):
            images = np.stack([view.canvas for view in batch])
            raw = network.forward(torch.from_numpy(images).to(network.device))
            if not self._device.startswith("cpu"):
                torch.cuda.synchronize(self._device)
            laps.end(f"forward/{spec.key}")
            for view, output in zip(
                batch, network.read_out(raw, batch[0].placement.canvas), strict=True
            ):
                outputs.setdefault(view.image, []).append((output, view.placement))
            laps.end(f"post/{spec.key}")
        for found in outputs.values():
            placements = [placement for _, placement in found]
            size = placements[0].image_size
            merge_views([output for output, _ in found], placements, spec, size)
        laps.end(f"post/{spec.key}")

    def _is_sound(self, data: bytes) -> bool:
        try:
            decode_image(data, max_pixels=self._max_pixels)
        except DecodeError:
            return False
        return True


def _batches(views: Sequence[_View], spec: ModelSpec) -> Iterator[list[_View]]:
    """Views of one canvas size, as many as a batch has."""
    size = spec.batch_size if isinstance(spec.batch_size, int) else DEFAULT_SIZE
    by_canvas: dict[tuple[int, int], list[_View]] = {}
    for view in views:
        by_canvas.setdefault(view.placement.canvas, []).append(view)
    for group in by_canvas.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _scoring_s(stats: Mapping[str, float | int | str]) -> float:
    """Seconds of a shard without the loading of its networks."""
    return float(stats["wall_s"]) - float(stats.get("load_s", 0))


def _num_threads() -> int:
    """Cores that decode beside a GPU."""
    return max(1, os.cpu_count() or 1)
