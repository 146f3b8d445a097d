"""Everything that is timed: limits of the machine, Pixelmill, and what users run instead.

A contender lives in processes of its own for as long as its workload is timed. `prepare` loads and
warms up, `score` does one round over all images, `results` hands out what a round found.
"""

import functools
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from pixelbench.machine import cpu_seconds
from pixelbench.user_code import Loop, Prepared, Result, build_loop, open_image
from pixelbench.workloads import Workload
from pixelmill.configs.schema import BoxPostprocess
from pixelmill.flows.pool import open_pool
from pixelmill.flows.submit import run_shards
from pixelmill.models.build import load_network
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.engine.decode import decode_image
from pixelmill.tasks.engine.score import (
    ShardOutcome,
    configure_process,
    nothing,
    score_shard,
)
from pixelmill.tasks.engine.stage_table import stage_lines
from pixelmill.tasks.engine.telemetry import Stats
from pixelmill.tasks.engine.views import draw_view, place_whole
from pixelmill.tasks.ingest import KNOWN_COLUMNS, ingest
from pixelmill.tasks.plan import plan_run, save_plan
from pixelmill.tasks.profile import StageTimer
from pixelmill.tasks.store import ShardRef, Store, publish

__all__ = ["CONTENDERS", "Contender", "Kind", "Setting"]

MAX_PIXELS = 200_000_000
LOADER_WORKERS = 2
# With fewer than these everybody plays all
_FEW_IMAGES = 32


@dataclass(frozen=True, slots=True)
class Setting:
    """What a contender is given.

    Attributes:
        paths: its part of the images.
        num_cores: that it may use in all its processes.
        scratch: a folder of its own.
    """

    workload: Workload
    paths: tuple[Path, ...]
    num_cores: int
    device: str
    scratch: Path

    @property
    def spec(self) -> ModelSpec:
        """Of the one model."""
        return self.workload.specs[0]

    @property
    def batch_size(self) -> int:
        """Of everybody who takes batches."""
        return cast("int", self.spec.batch_size)


class Contender(Protocol):
    """Something that scores images."""

    def score(self) -> dict[str, float]:
        """One round.

        Returns:
            Seconds measured inside the round: `wall_s` and `cpu_s` if the round's own are not what
            counts, `fixed_s` of them that do not grow with the images, `bound_s` that the stages
            alone would take, and `cpu_s/<stage>`.
        """
        ...

    def results(self) -> dict[str, Result]:
        """What the last round found, by file name; empty for limits."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


class _Base:
    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def results(self) -> dict[str, Result]:
        return {}

    def close(self) -> None:
        pass


# --- limits ---------------------------------------------------------------------------------------


class _Forward(_Base):
    """Pixelmill's network on canvases that are there already."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        configure_process()
        self._network = load_network(setting.spec, setting.device)
        canvases = [_canvas(path.read_bytes(), setting.spec) for path in setting.paths]
        self._batches = [
            torch.from_numpy(np.stack(batch)).to(self._network.device)
            for batch in batched(canvases, setting.batch_size)
        ]

    def score(self) -> dict[str, float]:
        for batch in self._batches:
            self._network.forward(batch)
        synchronise(self.setting.device)
        return {}


class _Decode(_Base):
    """Pixelmill's decoder on bytes that are there already."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        configure_process()
        self._files = [path.read_bytes() for path in setting.paths]

    def score(self) -> dict[str, float]:
        for data in self._files:
            decode_image(data, max_pixels=MAX_PIXELS)
        return {}


class _Stages(_Base):
    """Decode, transform, forward and postprocess one after the other, with nothing around them."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        configure_process()
        files = [path.read_bytes() for path in setting.paths]
        specs = [setting.spec]
        self._timer = StageTimer(files, specs, setting.device, max_pixels=MAX_PIXELS)

    def score(self) -> dict[str, float]:
        seconds = self._timer.run()
        stages = {"cpu_s/" + stage.partition("/")[0]: 0.0 for stage in seconds}
        for stage, value in seconds.items():
            stages["cpu_s/" + stage.partition("/")[0]] += value
        return stages


def _canvas(data: bytes, spec: ModelSpec) -> NDArray[np.uint8]:
    decoded = decode_image(data, max_pixels=MAX_PIXELS)
    return draw_view(
        decoded.pixels, place_whole(decoded.original_size, spec.preprocess), spec.preprocess
    )


def synchronise(device: str) -> None:
    """Wait until a GPU has done what it was told; a CPU has."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


# --- Pixelmill ------------------------------------------------------------------------------------


class _Pixelmill(_Base):
    """A planned run from its first byte read to its last receipt, stored and durable."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._rounds = itertools.count()
        self._stack = ExitStack()
        self._roots: list[Path] = []
        self._open()

    def _open(self) -> None:
        configure_process()

    def _run(self, root: str, run_id: str, num_shards: int) -> None:
        for index in range(num_shards):
            score_shard(root, run_id, index, device=self.setting.device)

    def _bound_s_per_image(self) -> float:
        return time_stages(self.setting)

    def score(self) -> dict[str, float]:
        for root in self._roots:  # of the round before: what is on disk stays small
            shutil.rmtree(root)
        self._roots = [self.setting.scratch / f"store-{next(self._rounds)}"]
        store = Store(self._roots[0], create=True)
        setting = self.setting
        run_id, num_shards = plan_workload(
            store, setting.workload, setting.num_cores, setting.paths
        )
        tree = [psutil.Process()]
        cpu_s, started = cpu_seconds(tree), time.perf_counter()
        self._run(store.root, run_id, num_shards)
        wall_s, cpu_s = time.perf_counter() - started, cpu_seconds(tree) - cpu_s
        receipts = (store.receipt(run_id, index) for index in range(num_shards))
        scoring_s = max(_scoring_s(each.stats) for each in receipts if each is not None)
        inside = {"wall_s": wall_s, "cpu_s": cpu_s, "fixed_s": wall_s - scoring_s}
        if setting.device == "cpu":
            inside["bound_s"] = self._bound_s_per_image() * len(setting.paths)
        return inside

    def results(self) -> dict[str, Result]:
        store = Store(self._roots[0])
        publish(store)
        return read_results(store, self.setting.workload)

    def close(self) -> None:
        self._stack.close()
        for root in self._roots:
            shutil.rmtree(root)


class _PixelmillCluster(_Pixelmill):
    """The same run by the workers, the scheduler and the submit loop that the command starts."""

    def _open(self) -> None:
        num_cores = self.setting.num_cores
        self._pool = self._stack.enter_context(open_pool(f"local:{num_cores}", num_cores))

    def _run(self, root: str, run_id: str, num_shards: int) -> None:
        shards = [ShardRef(run_id, index, 0) for index in range(num_shards)]
        done = run_shards(self._pool, functools.partial(score_part, root), shards)
        if done.num_done != num_shards:
            raise RuntimeError(f"{num_shards - done.num_done} shards failed: {done.failed}")

    def _bound_s_per_image(self) -> float:
        num_cores = self.setting.num_cores
        parts = [ShardRef("bound", index, 0) for index in range(num_cores)]
        run_shards(self._pool, functools.partial(_time_stages_of, self.setting), parts)
        times = [float(_times_file(self.setting, part).read_text()) for part in parts]
        return sum(times) / num_cores**2


_TIMERS: dict[Path, StageTimer] = {}


def time_stages(setting: Setting) -> float:
    """CPU seconds of an image in decode, transform, forward and post, with nothing around them.

    In the process that scores: where memory happens to lie makes a process faster or slower by up
    to a tenth for as long as it lives, and so what it gets of another's bound says little.
    """
    timer = _TIMERS.get(setting.scratch)
    if timer is None:
        share = 2 if len(setting.paths) >= _FEW_IMAGES else 1
        files = [path.read_bytes() for path in setting.paths[::share]]
        timer = StageTimer(files, [setting.spec], setting.device, max_pixels=MAX_PIXELS)
        timer.run()
        _TIMERS[setting.scratch] = timer
    return sum(timer.run().values()) / len(timer.files)


def _time_stages_of(
    setting: Setting,
    part: ShardRef,
    /,
    *,
    should_stop: Callable[[], bool],
    on_scored: Callable[[], None] = nothing,
) -> ShardOutcome:
    """What a worker runs: the stages, while the others run theirs."""
    _times_file(setting, part).write_text(str(time_stages(setting)))
    return ShardOutcome(f"{part.run_id}-{part.index}", {}, 0, {})


def _times_file(setting: Setting, part: ShardRef) -> Path:
    return setting.scratch / f"stages-{part.index}"


def _scoring_s(stats: Stats) -> float:
    """Of a shard's seconds those that its images took; not its start, writing and commit."""
    stages = (each for each in stage_lines(stats) if each.name not in ("load", "read", "write"))
    return float(stats["read_s"]) + sum(each.busy_s for each in stages)


def score_part(
    root: str,
    shard: ShardRef,
    /,
    *,
    should_stop: Callable[[], bool],
    on_scored: Callable[[], None] = nothing,
) -> Any:
    """What a worker runs: a shard, on one thread."""
    configure_process()
    return score_shard(
        root, shard.run_id, shard.index, should_stop=should_stop, on_scored=on_scored
    )


def plan_workload(
    store: Store, workload: Workload, num_workers: int, paths: Sequence[Path] | None = None
) -> tuple[str, int]:
    """Plan the images of a workload, or some of them.

    Returns:
        (run id, number of shards).
    """
    config = workload.config
    listing = ingest(
        str(workload.folder), config.ingest, store.table("catalog", columns=KNOWN_COLUMNS)
    )
    if paths is not None:
        names = pa.array([path.name for path in paths])
        played = pc.is_in(listing.images["path"], value_set=names)  # pyright: ignore[reportAttributeAccessIssue]
        listing = replace(listing, images=listing.images.filter(played))
    plan = plan_run(
        store,
        listing,
        workload.specs,
        config,
        collection="bench",
        source=str(workload.folder),
        date="2026-01-31",
        num_workers=num_workers,
    )
    record = save_plan(store, plan)
    return record.run_id, plan.num_shards


def read_results(store: Store, workload: Workload) -> dict[str, Result]:
    """What a store has of a workload's first model, by file name."""
    spec = workload.specs[0]
    catalog = store.catalog("bench")
    names = dict(zip(catalog["image_id"], catalog["path"], strict=True))
    if spec.task == "semantic_segmentation":
        return {
            name: Result(semantic=store.semantic_mask(image_id, spec.key))
            for image_id, name in names.items()
        }
    if spec.task == "captioning":
        rows = store.captions(spec.key)
        return {
            names[image_id]: Result(caption=text)
            for image_id, text in zip(rows["image_id"], rows["text"], strict=True)
        }
    if spec.task == "classification":
        rows = store.labels(spec.key).sort_values(["image_id", "class_id"])
        return {
            names[str(image_id)]: Result(probs=group["score"].to_numpy(np.float32))
            for image_id, group in rows.groupby("image_id")
        }
    return _read_boxes(store, spec, names)


def _read_boxes(store: Store, spec: ModelSpec, names: dict[str, str]) -> dict[str, Result]:
    indices = cast("Sequence[int]", spec.arguments.get("class_indices", range(len(spec.classes))))
    by_image = dict(iter(store.boxes(spec.key).groupby("image_id")))
    found = {}
    for image_id, name in names.items():
        rows = by_image.get(image_id)
        if rows is None:
            found[name] = Result(np.empty((0, 4), "f4"), np.empty(0, "f4"), np.empty(0, "i8"))
            continue
        rows = rows.sort_values("rank")
        masks = None
        if spec.task == "instance_segmentation":
            masks = store.instances(image_id, spec.key).masks
        found[name] = Result(
            boxes_xyxy=rows[["x_min", "y_min", "x_max", "y_max"]].to_numpy(np.float32),
            scores=rows["score"].to_numpy(np.float32),
            labels=np.array(indices)[rows["class_id"].to_numpy()],
            masks=masks,
        )
    return found


# --- what users run instead -----------------------------------------------------------------------


class _Naive(_Base):
    """Image by image in one process."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        torch.set_num_threads(setting.num_cores)
        self._loop = build_loop(setting.workload, setting.device)
        self._found: dict[str, Result] = {}

    def score(self) -> dict[str, float]:
        self._found = {
            path.name: self._loop.score([self._loop.prepare(open_image(path))])[0]
            for path in self.setting.paths
        }
        return {}

    def results(self) -> dict[str, Result]:
        return self._found


class _Images(Dataset[Prepared]):
    def __init__(self, paths: Sequence[Path], loop: Loop) -> None:
        self._paths, self._prepare = paths, loop.prepare

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Prepared:
        return self._prepare(open_image(self._paths[index]))


class _DataLoader(_Base):
    """Decoded and resized by two loader processes, scored in batches by this one."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        torch.set_num_threads(setting.num_cores)
        self._loop = build_loop(setting.workload, setting.device)
        self._loader = DataLoader(
            _Images(setting.paths, self._loop),
            batch_size=setting.batch_size,
            num_workers=LOADER_WORKERS,
            collate_fn=list,
            pin_memory=False,
            persistent_workers=True,
        )
        self._found: dict[str, Result] = {}

    def score(self) -> dict[str, float]:
        names = (path.name for path in self.setting.paths)
        found = (result for batch in self._loader for result in self._loop.score(batch))
        self._found = dict(zip(names, found, strict=True))
        return {}

    def results(self) -> dict[str, Result]:
        return self._found


class _RayActor:
    """One of Ray Data's workers; decodes itself, so that no pixels go through the object store."""

    def __init__(self, setting: Setting) -> None:
        torch.set_num_threads(1)
        self._loop = build_loop(setting.workload, setting.device)
        self._folder = setting.workload.folder
        warm = self._loop.prepare(open_image(setting.paths[0]))
        self._loop.score([warm] * setting.batch_size)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        started, cpu = time.monotonic(), time.process_time()
        images = [self._loop.prepare(open_image(self._folder / name)) for name in batch["item"]]
        found = np.empty(len(images), object)
        found[:] = self._loop.score(images)
        ended, cpu = time.monotonic(), time.process_time() - cpu
        return {
            "name": batch["item"],
            "result": found,
            "started": np.full(len(images), started),
            "ended": np.full(len(images), ended),
            "cpu": np.full(len(images), cpu / len(images)),
        }


class _Ray(_Base):
    """Ray Data's map_batches over an actor per core.

    Actors start anew with every execution, for seconds; what counts is the time from the first
    batch begun to the last one done, which leaves that out.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        import ray  # pyright: ignore[reportMissingImports]
        from ray.data import DataContext  # pyright: ignore[reportMissingImports]

        ray.init(
            num_cpus=setting.num_cores,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
        )
        DataContext.get_current().enable_progress_bars = False
        self._ray = ray
        self._found: dict[str, Result] = {}

    def score(self) -> dict[str, float]:
        names = [path.name for path in self.setting.paths]
        batch_size = self.setting.batch_size
        rows = (
            self._ray.data.from_items(names, override_num_blocks=-(-len(names) // batch_size))
            .map_batches(
                _RayActor,
                fn_constructor_args=(self.setting,),
                batch_size=batch_size,
                compute=self._ray.data.ActorPoolStrategy(size=self.setting.num_cores),
                num_cpus=1,
            )
            .take_all()
        )
        self._found = {row["name"]: row["result"] for row in rows}
        return {
            "wall_s": max(row["ended"] for row in rows) - min(row["started"] for row in rows),
            "cpu_s": sum(row["cpu"] for row in rows),
        }

    def results(self) -> dict[str, Result]:
        return self._found

    def close(self) -> None:
        self._ray.shutdown()


class _AsTorchvision(torch.nn.Module):
    """A loop's model with torchvision's calling convention, which SAHI knows.

    Boxes only: SAHI raises on a mask without an area, and its polygons cost more than the network.
    """

    def __init__(self, loop: Any) -> None:
        super().__init__()
        self.loop = loop

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        from torchvision.transforms.v2.functional import to_pil_image

        results = self.loop.score([self.loop.prepare(to_pil_image(image)) for image in images])
        return [
            {
                "boxes": torch.from_numpy(each.boxes_xyxy),
                "scores": torch.from_numpy(each.scores),
                "labels": torch.from_numpy(each.labels),
            }
            for each in results
        ]


class _Sahi(_Base):
    """SAHI's `get_prediction` without slicing: its decoding, its result objects, our model."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        torch.set_num_threads(setting.num_cores)
        from sahi.models.torchvision import (  # pyright: ignore[reportMissingImports]
            TorchVisionDetectionModel,
        )

        loop: Any = build_loop(setting.workload, setting.device)
        is_torchvision = setting.workload.loop == "torchvision_detector"
        names = {str(index): str(index) for index in range(len(setting.spec.classes) + 20)}
        self._model = TorchVisionDetectionModel(
            model=loop.module if is_torchvision else _AsTorchvision(loop),
            category_mapping=names,
            confidence_threshold=cast("BoxPostprocess", setting.spec.postprocess).score_threshold,
            device=setting.device,
        )
        self._found: dict[str, Any] = {}

    def score(self) -> dict[str, float]:
        from sahi.predict import get_prediction  # pyright: ignore[reportMissingImports]

        with torch.inference_mode():
            self._found = {
                path.name: get_prediction(str(path), self._model, verbose=0)
                for path in self.setting.paths
            }
        return {}

    def results(self) -> dict[str, Result]:
        return {name: _from_sahi(found) for name, found in self._found.items()}


def _from_sahi(found: Any) -> Result:
    predictions = found.object_prediction_list
    return Result(
        boxes_xyxy=np.array([each.bbox.to_xyxy() for each in predictions], "f4").reshape(-1, 4),
        scores=np.array([each.score.value for each in predictions], "f4"),
        labels=np.array([each.category.id for each in predictions], "i8"),
    )


# --- the table's rows -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the table.

    Attributes:
        title: for readers.
        build: makes the contender, its model loaded.
        num_processes: contenders at the same time, each with its part of the images.
        num_cores: that all its processes together may use.
        needs: package that it is skipped without.
        only: loops of the workloads that it is for; empty: all.
        on_gpu: whether it makes sense there.
        variant: "best": with the workload's fastest settings, "int8": with those in int8; their
            results may differ a little.
        share: one in so many of the images is played: a loop's rate does not depend on how many
            they are, and its time is better spent on rounds.
    """

    title: str
    build: Callable[[Setting], Contender]
    num_processes: int = 1
    num_cores: int = 1
    needs: str | None = None
    only: tuple[str, ...] = ()
    on_gpu: bool = True
    variant: Literal["", "best", "int8"] = ""
    share: int = 1

    def parts(self, paths: Sequence[Path]) -> list[tuple[Path, ...]]:
        """The images that each of its processes plays."""
        share = self.share if len(paths) >= _FEW_IMAGES else 1
        played = paths[::share]
        return [tuple(played[part :: self.num_processes]) for part in range(self.num_processes)]


_BOXES = ("own_detector", "torchvision_detector")

CONTENDERS: dict[str, Kind] = {
    "forward_1": Kind("limit: pure forward", _Forward, share=8),
    "decode_1": Kind("limit: raw decode", _Decode, share=2),
    "stages_1": Kind("bound: decode + transform + forward + post", _Stages, share=4),
    "pixelmill_1": Kind("Pixelmill, one worker", _Pixelmill, share=2),
    "best_1": Kind("Pixelmill, one worker, fastest settings", _Pixelmill, variant="best", share=2),
    "int8_1": Kind(
        "Pixelmill, one worker, int8", _Pixelmill, variant="int8", on_gpu=False, share=2
    ),
    "naive_1": Kind("naive loop, batch 1", _Naive, share=16),
    "sahi_1": Kind("SAHI get_prediction", _Sahi, needs="sahi", only=_BOXES, share=16),
    "stages_2": Kind(
        "bound: decode + transform + forward + post",
        _Stages,
        num_processes=2,
        num_cores=2,
        on_gpu=False,
        share=2,
    ),
    "pixelmill_2": Kind("Pixelmill, two workers", _PixelmillCluster, num_cores=2, on_gpu=False),
    "best_2": Kind(
        "Pixelmill, two workers, fastest settings",
        _PixelmillCluster,
        num_cores=2,
        on_gpu=False,
        variant="best",
    ),
    "int8_2": Kind(
        "Pixelmill, two workers, int8",
        _PixelmillCluster,
        num_cores=2,
        on_gpu=False,
        variant="int8",
    ),
    "naive_2": Kind("naive loop, batch 1, 2 threads", _Naive, num_cores=2, share=8),
    "loader_2": Kind("DataLoader loop, 2 loaders, 2 threads", _DataLoader, num_cores=2, share=8),
    "ray_2": Kind(
        "Ray Data map_batches, 2 actors", _Ray, num_cores=2, needs="ray", on_gpu=False, share=8
    ),
}


def batched(items: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """Consecutive groups of `size`, the last one what is left."""
    iterator = iter(items)
    while group := tuple(itertools.islice(iterator, size)):
        yield group
