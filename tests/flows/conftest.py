"""Scenes, tiny random models, and commands as processes for the flows."""

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import torch
import yaml

from pixelmill.configs.load import load_config
from pixelmill.configs.schema import PreprocessConfig
from pixelmill.flows.cli import main
from pixelmill.flows.job import ScoreParams, prepare_job, read_known
from pixelmill.flows.worker import score_reference
from pixelmill.models.checkpoint import CheckpointMeta, save_checkpoint
from pixelmill.models.zoo import ARCHITECTURES
from pixelmill.tasks.ingest import ingest
from pixelmill.tasks.plan import plan_run, save_plan
from pixelmill.tasks.scenes.render import SEMANTIC_CLASSES
from pixelmill.tasks.scenes.things import CLASSES
from pixelmill.tasks.scenes.write import write_scenes
from pixelmill.tasks.store import ShardRef, Store, publish

NUM_SCENES = 8
DATE = "2024-05-31"
PATIENCE_S = 240  # for a machine that is busy with something else


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, NUM_SCENES, seed=0)
    return folder


@pytest.fixture(scope="session")
def copy_scenes(scenes):
    """Fills a folder with any number of images: the scenes again, each with a comment of its own.

    Their bytes differ, so each is scored; rendering as many would take longer than scoring them.
    """

    def copy(folder: Path, count: int) -> Path:
        folder.mkdir(parents=True)
        paths = sorted((scenes / "images").iterdir())
        for index in range(count):
            data = paths[index % len(paths)].read_bytes()
            comment = b"\xff\xfe" + (6).to_bytes(2, "big") + index.to_bytes(4, "big")
            (folder / f"{index:04d}.jpg").write_bytes(data[:2] + comment + data[2:])
        return folder

    return copy


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory) -> Path:
    """A detector and a segmenter with random weights; shards of four images."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    preprocess = PreprocessConfig(canvases=((96, 128), (128, 96)))
    things, regions = tuple(CLASSES), tuple(SEMANTIC_CLASSES)
    builds = {
        "detector": ("retinamask", "detection", {"num_classes": len(things)}, things),
        "segmenter": (
            "unet",
            "semantic_segmentation",
            {"num_classes": len(regions), "width": 4, "depth": 2},
            regions,
        ),
    }
    models = []
    for name, (architecture, task, arguments, classes) in builds.items():
        meta = CheckpointMeta(
            name=name,
            task=task,
            architecture=architecture,
            arguments=arguments,
            classes=classes,
            vocabulary=(),
            preprocess=preprocess,
            training={},
        )
        module = ARCHITECTURES[architecture].build(**arguments)
        save_checkpoint(folder / f"{name}.safetensors", module, meta)
        models.append({"name": name, "task": task, "weights": f"{name}.safetensors"})
    document = {
        "name": "tiny",
        "models": models,
        "shard": {"max_images": 4},
        "evaluation": {"instances": "instances.json", "semantic": "semantic"},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="session")
def inline(tiny_config):
    """The tiny models without a cluster."""
    config = load_config(tiny_config)
    compute = config.compute.model_copy(update={"cluster": "inline"})
    return config.model_copy(update={"compute": compute})


@pytest.fixture(scope="session")
def server():
    """Prefect's own test server, for flows in this process; one for all files of a process."""
    from prefect.testing.utilities import prefect_test_harness  # two seconds

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="module")
def images(copy_scenes, tmp_path_factory, request) -> Path:
    """A folder of as many images as the module's NUM_IMAGES says."""
    return copy_scenes(tmp_path_factory.mktemp("some") / "scenes", request.module.NUM_IMAGES)


@pytest.fixture(scope="session")
def plan_plainly(tiny_config):
    """Plans a folder by the tiny models: a new store, and what there is to score."""

    def plan(folder: Path, root: Path) -> tuple[Store, list[ShardRef]]:
        params = ScoreParams(
            source=str(folder), store=str(root), config=load_config(tiny_config), date=DATE
        )
        job = prepare_job(params)
        store = Store(root, create=True)
        plan = plan_run(
            store,
            ingest(job.source, job.config.ingest, read_known(store, job.collection)),
            job.specs,
            job.config,
            collection=job.collection,
            source=job.source,
            date=job.date,
        )
        record = save_plan(store, plan)
        return store, [ShardRef(record.run_id, index, 4) for index in range(record.num_shards)]

    return plan


@pytest.fixture(scope="session")
def score_plainly(plan_plainly):
    """Scores a folder in this process without Prefect and Dask; all other ways must equal it."""

    def score(folder: Path, root: Path, *, is_published: bool = True) -> Store:
        store, shards = plan_plainly(folder, root)
        for shard in shards:
            score_reference(store.root, "", shard, should_stop=lambda: False, is_isolated=False)
        if is_published:
            publish(store)
        return store

    return score


@pytest.fixture(scope="module")
def reference(images, score_plainly, tmp_path_factory) -> Store:
    """What comes of those images where nothing is in the way."""
    return score_plainly(images, tmp_path_factory.mktemp("reference") / "store")


@pytest.fixture(scope="session")
def assert_same_predictions():
    """Two stores hold the same, whenever and in whatever shards it was scored."""

    def rows(store: Store) -> pd.DataFrame:
        kept = ["image_id", "model", "date", "path", "width", "height", "n_detections"]
        images = store.images()[kept]
        return images.sort_values(["model", "image_id"]).reset_index(drop=True)

    def boxes(store: Store) -> pd.DataFrame:
        return store.boxes().sort_values(["image_id", "model", "rank"]).reset_index(drop=True)

    def of(images: set[str] | None, table: pd.DataFrame) -> pd.DataFrame:
        if images is None:
            return table
        return table[table["image_id"].isin(images)].reset_index(drop=True)

    def check(root: Path, reference: Store, only: set[str] | None = None) -> None:
        store = Store(root)
        pd.testing.assert_frame_equal(of(only, rows(store)), rows(reference))
        pd.testing.assert_frame_equal(of(only, boxes(store)), boxes(reference))
        for image in rows(reference)["image_id"].unique()[::10]:
            mask, expected = store.semantic_mask(image), reference.semantic_mask(image)
            assert (mask == expected).all()

    return check


@pytest.fixture(scope="session")
def hostile() -> SimpleNamespace:
    """hostile.py: tests are not a package."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("hostile.py"))))


@pytest.fixture(scope="session")
def chaos() -> SimpleNamespace:
    """chaos.py likewise."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("chaos.py"))))


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory) -> Path:
    """One home for all commands that tests start: only the first pays for the migrations."""
    return tmp_path_factory.mktemp("prefect")


# Root reads and writes what it may not, by two capabilities; this gives them up for good
POWERLESS = """
import ctypes, os, sys

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
if os.geteuid() == 0:
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        if ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
os.execv(sys.executable, [sys.executable, "-P", *sys.argv[1:]])
"""


class Command:
    """A Python module that runs in a session of its own."""

    def __init__(self, arguments: tuple[str, ...], environment: dict[str, str], folder: Path):
        self._stderr = folder / "stderr"
        with self._stderr.open("w") as stderr:
            self._process = subprocess.Popen(
                (sys.executable, "-P", *arguments),
                env=environment,
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        return self._process.wait(timeout_s)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def stderr(self) -> str:
        return self._stderr.read_text()

    def members(self) -> list[int]:
        """Living processes of the session."""
        pids = []
        for process in psutil.process_iter():
            try:
                is_ours = os.getsid(process.pid) == self.pid
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    pids.append(process.pid)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return pids

    def kill(self) -> None:
        for pid in self.members():
            os.kill(pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def run(capsys):
    """A command in this process: its exit code, and what it printed and complained of."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert isinstance(ended.value.code, int)
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


@pytest.fixture(scope="module")
def launch(prefect_home, tmp_path_factory):
    """Starts Python modules as processes in folders of their own; none survives the module."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "DASK_"))}
    clean["PREFECT_HOME"] = str(prefect_home)
    started: list[Command] = []

    def launch(*module: object, before: tuple[object, ...] = (), **environment: str) -> Command:
        texts = tuple(str(argument) for argument in (*before, "-m", *module))
        started.append(Command(texts, clean | environment, tmp_path_factory.mktemp("command")))
        return started[-1]

    yield launch
    for command in reversed(started):
        command.kill()


@pytest.fixture(scope="module")
def launch_powerless(launch, tmp_path_factory):
    """Starts Python modules for which file permissions hold, even if root starts them."""
    script = tmp_path_factory.mktemp("powerless") / "powerless.py"
    script.write_text(POWERLESS)

    def launch_powerless(*arguments: object, **environment: str) -> Command:
        return launch(*arguments, before=(script,), **environment)

    return launch_powerless


@pytest.fixture(scope="module")
def launch_score(launch, tiny_config):
    """Starts `pixelmill score` with the tiny models."""

    def launch_score(folder: Path, store: Path, *options: object, **environment: str) -> Command:
        where = (folder, "--config", tiny_config, "--out", store, "--date", DATE, "--no-report")
        return launch("pixelmill.flows.cli", "score", *where, *options, **environment)

    return launch_score


@pytest.fixture(scope="session")
def wait_for():
    """Waits until a condition holds, and returns what it gave."""

    def wait_for(condition, what: str):
        deadline = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert time.monotonic() < deadline, f"no {what} within {PATIENCE_S} s"
            time.sleep(0.05)
        return found

    return wait_for


@pytest.fixture(scope="session")
def count_receipts():
    """Shards of a store that are committed."""

    def count_receipts(store: Path) -> int:
        return len(list(store.glob("_commit/receipts/*/*.json")))

    return count_receipts
