"""`pixelmill score` under random kill -9, for test_chaos.py and `make chaos`.

    python chaos.py --rounds 100 --images 240 --seed 0 --folder build/chaos

Scores rendered scenes once undisturbed. Then, round by round, scores them into a new store while
workers, main processes, schedulers, or all of it at once are killed, and the command is run again
until it completes. After each round the store is audited, and compared with the undisturbed one row
by row and pixel by pixel. Prints a JSON line for each round, and one for all; exits with 1 if
anything was lost, doubled or different, if an audit failed, or if a command ended as it should not.
The store of a round that went wrong is kept.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import zarr

from pixelmill.tasks.scenes.write import write_scenes
from pixelmill.tasks.store import Store
from pixelmill.tasks.store.audit import audit_store

DATE = "2024-05-31"
PATIENCE_S = 900.0  # until something that does not end counts as hung
MAX_STARTS = 12
# Canvases smaller than those of the training: it is not the networks that are tested
CONFIG = """
name: chaos
models:
  - name: demo-detector
    task: instance_segmentation
    weights: embedded:demo-detector
    preprocess: &small {canvases: [[96, 128], [128, 96]]}
  - name: demo-segmenter
    task: semantic_segmentation
    weights: embedded:demo-segmenter
    preprocess: *small
shard: {max_images: IMAGES_PER_SHARD}
compute: {publish_every: 3}
"""
# A round in five each: two nightly runs by mistake, and a scheduler that is not ours
MODES = ("local", "scheduler", "local", "twins", "local")
# Columns that say when and in which cut something was scored
CIRCUMSTANCES = ["run_id", "shard_id", "scored_at", "mask_store", "semantic_row", "instances_row"]
KEYS = {
    "images": ["model", "image_id"],
    "detections": ["model", "image_id", "rank"],
    "catalog": ["collection", "path", "size_bytes", "modified"],
    "masks": ["model", "image_id", "kind"],
}


class GoneWrongError(Exception):
    """A command did not end as it should."""


# Processes


class Command:
    """A Python module in a session of its own."""

    def __init__(self, log: Path, *arguments: object, **environment: str) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "DASK_"))}
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", *map(str, arguments)],
                env=clean | environment,
                cwd=log.parent,
                stdout=stderr,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.log = log

    def code(self) -> int | None:
        """Exit code; None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Exit code, when it has ended.

        Raises:
            GoneWrongError: it has not, for too long.
        """
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired as err:
            raise GoneWrongError(f"hung: {self._process.args}, {self.log}") from err

    def members(self) -> list[psutil.Process]:
        """Living processes of the session, itself included."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                is_ours = os.getsid(process.pid) == self._process.pid
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """Dask's worker processes, started by it or by its nannies."""
        found = []
        for process in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "spawn_main" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill(self) -> None:
        """Only the process that was started; its children find out by themselves."""
        if self.code() is None:
            self._process.kill()
        self._process.wait()

    def kill_all(self) -> None:
        """The process and all that it started."""
        kill_at_once([self])


def kill_at_once(commands: list[Command]) -> None:
    """kill -9 of everything, as if the power failed."""
    for member in [member for command in commands for member in command.members()]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    for command in commands:
        command.kill()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Raises GoneWrongError if it does not become true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise GoneWrongError(f"no {what} within {PATIENCE_S:.0f} s")
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# The undisturbed run, and how another one differs from it


def mask_digests(store: Store, images: pd.DataFrame) -> pd.DataFrame:
    """One row for each mask of each image, with the sha256 of its pixels."""
    rows = []
    for kind in ("semantic", "instances"):
        having = images.dropna(subset=f"{kind}_array")
        for (folder, name), group in having.groupby(["mask_store", f"{kind}_array"]):
            planes = np.asarray(zarr.open_array(f"{store.root}/{folder}/{name}", mode="r"))
            for row in group.itertuples():
                pixels = planes[int(getattr(row, f"{kind}_row"))][..., : row.height, : row.width]
                if kind == "instances":  # how many layers there are is the shard's affair
                    pixels = pixels[pixels.any(axis=(1, 2))]
                digest = hashlib.sha256(pixels.tobytes()).hexdigest()
                rows.append((row.model, row.image_id, kind, str(pixels.shape), digest))
    return pd.DataFrame(rows, columns=["model", "image_id", "kind", "shape", "sha256"])


def read_all(root: Path) -> dict[str, pd.DataFrame]:
    """Everything that a store says of images, whenever and in whatever shards it was scored."""
    store = Store(root)
    images = store.images()
    tables = {
        "images": images,
        "detections": store.boxes(),
        "catalog": store.catalog(),
        "masks": mask_digests(store, images),
    }
    return {
        name: table.drop(columns=[each for each in CIRCUMSTANCES if each in table])
        .sort_values(KEYS[name])
        .reset_index(drop=True)
        for name, table in tables.items()
    }


def compare(found: dict[str, pd.DataFrame], expected: dict[str, pd.DataFrame]) -> Counter[str]:
    """Rows that are lost, doubled or different, in all tables together; none has a count of 0."""
    wrong: Counter[str] = Counter()
    for name, keys in KEYS.items():
        ours, theirs = found[name], expected[name]
        wrong["doubled"] += int(ours.duplicated(keys).sum())
        both = theirs.merge(ours[keys].drop_duplicates(), how="left", on=keys, indicator="_where")
        wrong["lost"] += int((both["_where"] == "left_only").sum())
        same = theirs.merge(ours.drop_duplicates(), how="inner", on=list(theirs.columns))
        known = int((both["_where"] == "both").sum())
        wrong["different"] += known - len(same)
        wrong["different"] += max(0, len(ours.drop_duplicates(keys)) - known)
    return +wrong


# Rounds


@dataclass(slots=True)
class Round:
    """What happened in a round.

    Attributes:
        kills: by what was killed.
        starts: of the command.
        wrong: what an audit or a comparison found, or how a command ended.
    """

    number: int
    mode: str
    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    num_images: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> dict[str, object]:
        return {
            "round": self.number,
            "mode": self.mode,
            "kills": dict(self.kills),
            "starts": self.starts,
            "images": self.num_images,
            "wrong": dict(self.wrong),
            "notes": self.notes,
            "seconds": round(self.seconds, 1),
        }


class Harness:
    """Scenes, a configuration, a Prefect server, and stores in a folder.

    Args:
        folder: for all of it.
        num_images: scenes to score.
        num_shards: about.
        max_kills: per round, at least 1.
    """

    def __init__(self, folder: Path, num_images: int, num_shards: int, max_kills: int) -> None:
        self.folder, self.num_shards, self.max_kills = folder, num_shards, max_kills
        self.images = folder / "scenes" / "images"
        self.config = folder / "chaos.yaml"
        self.num_images = num_images
        self._num_logs = 0
        self.api = ""
        folder.mkdir(parents=True, exist_ok=True)
        per_shard = -(-num_images // num_shards)
        self.config.write_text(CONFIG.replace("IMAGES_PER_SHARD", str(per_shard)))
        write_scenes(folder / "scenes", num_images, seed=0)

    def launch(self, name: str, *arguments: object, **environment: str) -> Command:
        self._num_logs += 1
        log = self.folder / "logs" / f"{self._num_logs:04d}-{name}.log"
        log.parent.mkdir(exist_ok=True)
        home = {"PREFECT_HOME": str(self.folder / "prefect"), "DO_NOT_TRACK": "1"}
        return Command(log, *arguments, **home, **environment)

    @contextlib.contextmanager
    def server(self) -> Iterator[None]:
        """A Prefect server for all rounds: one for each start of the command takes longer."""
        port = free_port()
        server = self.launch(
            "prefect", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port
        )

        def is_healthy() -> bool:
            if server.code() is not None:
                raise GoneWrongError(f"no Prefect server: {server.log}")
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{api}/health", timeout=30) as answer,
            ):
                return bool(json.load(answer))
            return False

        api = f"http://127.0.0.1:{port}/api"
        try:
            wait_until(is_healthy, "Prefect server")
            self.api = api
            yield
        finally:
            server.kill_all()

    def score(self, store: Path, *options: object) -> Command:
        where = (self.images, "--config", self.config, "--out", store, "--date", DATE)
        return self.launch(
            "score", "pixelmill.flows.cli", "score", *where, "--no-report", *options,
            PREFECT_API_URL=self.api,
        )  # fmt: skip

    def reference(self) -> dict[str, pd.DataFrame]:
        """What an undisturbed run gives."""
        store = self.folder / "reference"
        shutil.rmtree(store, ignore_errors=True)
        command = self.score(store, "--cluster", "local:2")
        if command.wait():
            raise GoneWrongError(f"the undisturbed run failed: {command.log}")
        return read_all(store)

    def play(self, number: int, chance: random.Random, expected: dict[str, pd.DataFrame]) -> Round:
        """One round."""
        started = time.monotonic()
        mode = MODES[number % len(MODES)]
        done = Round(number, mode, num_images=self.num_images)
        store = self.folder / f"round-{number:03d}"
        shutil.rmtree(store, ignore_errors=True)
        game = _Game(self, store, done, chance)
        try:
            game.play()
        except GoneWrongError as err:
            done.wrong["commands"] += 1
            done.notes.append(str(err))
        finally:
            kill_at_once(game.everything())
        if not done.wrong:
            audit = audit_store(Store(store), grace_s=0)
            done.wrong["damage"] += len(audit.of("damage"))
            done.notes += [f"{f.kind} {f.key}" for f in audit.of("damage")]
            done.wrong += compare(read_all(store), expected)
        done.wrong = +done.wrong
        done.seconds = time.monotonic() - started
        if not done.wrong:
            shutil.rmtree(store)
        return done


class _Game:
    """The processes of one round, and what is done to them."""

    def __init__(self, harness: Harness, store: Path, done: Round, chance: random.Random) -> None:
        self.harness, self.store, self.done, self.chance = harness, store, done, chance
        self.runs: list[Command] = []
        self.scheduler: Command | None = None
        self.workers: list[Command] = []
        self.options: tuple[object, ...] = ("--cluster", "local:2")

    def everything(self) -> list[Command]:
        cluster = [self.scheduler] if self.scheduler is not None else []
        return [*self.runs, *cluster, *self.workers]

    def play(self) -> None:
        left = self.chance.randint(1, self.harness.max_kills)
        if self.done.mode == "scheduler":
            self._start_cluster()
        while True:
            self._start()
            while left and self._wait_for_a_moment():
                left -= 1
                if self._kill():
                    break
            codes = [run.wait() for run in self.runs]
            if 0 in codes and not left:
                return
            for run, code in zip(self.runs, codes, strict=True):
                # 0: too quick for us. A scheduler that is gone is told: 2 before the start, else 1
                allowed = (0, -signal.SIGKILL, *((1, 2) if self.scheduler else ()))
                if code not in allowed:
                    raise GoneWrongError(f"exit code {code}: {run.log}")
            if 0 in codes:
                return
            if self.done.starts >= MAX_STARTS:
                raise GoneWrongError(f"not complete after {MAX_STARTS} starts: {self.runs[0].log}")

    def _start(self) -> None:
        if self.chance.random() < 0.5:  # else the next run meets workers that do not know yet
            for run in self.runs:
                wait_until(lambda run=run: not run.workers(), "end of orphaned workers")
        if self.scheduler is not None and self.scheduler.code() is not None:
            self._start_cluster()
        number = 2 if self.done.mode == "twins" else 1
        self.runs = [self.harness.score(self.store, *self.options) for _ in range(number)]
        self.done.starts += number

    def _start_cluster(self) -> None:
        kill_at_once(self.workers)
        file = self.harness.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        local = ("--dashboard-address", "127.0.0.1:0")
        where = ("--host", "127.0.0.1", "--port", 0, "--scheduler-file", file, *local)
        self.scheduler = self.harness.launch("scheduler", "dask", "scheduler", *where)
        wait_until(lambda: file.exists() and file.read_text().endswith("}"), "scheduler")
        address = json.loads(file.read_text())["address"]
        self.options = ("--scheduler", address)
        self.workers = [
            self.harness.launch("worker", "dask", "worker", address, "--nthreads", 1, *local)
            for _ in range(2)
        ]

    def _num_receipts(self) -> int:
        return len(list(self.store.glob("_commit/receipts/*/*.json")))

    def _wait_for_a_moment(self) -> bool:
        """Wait for a random part of what is left; False if a run has ended by then."""
        before = self._num_receipts()
        goal = self.chance.randint(before, self.harness.num_shards)

        def is_time() -> bool:
            if any(run.code() is not None for run in self.runs):
                return True
            has_planned = any(self.store.glob("_commit/runs/*.json"))
            return has_planned and self._num_receipts() >= goal

        wait_until(is_time, f"{goal} receipts in {self.store}")
        # Between planning and the first receipt workers start, and nothing is to be seen
        time.sleep(self.chance.uniform(0, 4.0 if goal == before else 0.5))
        return all(run.code() is None for run in self.runs)

    def _kill(self) -> bool:
        """Kill something; True if a run ended by that, or will."""
        run = self.chance.choice(self.runs)
        owners = self.workers or [run]
        workers = [worker for owner in owners for worker in owner.workers()]
        victims = ["main", "all", *(["worker"] * 2 if workers else [])]
        if self.scheduler is not None:
            victims.append("scheduler")
        victim = self.chance.choice(victims)
        self.done.kills[victim] += 1
        if victim == "worker":
            with contextlib.suppress(psutil.NoSuchProcess):
                self.chance.choice(workers).kill()
            return False
        if victim == "main":
            run.kill()
        elif victim == "scheduler":
            assert self.scheduler is not None
            self.scheduler.kill_all()
        else:
            kill_at_once(self.everything())
        return True


def main() -> int:
    parser = argparse.ArgumentParser(description="kill -9 at random, resume, audit, compare")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--kills", type=int, default=4, help="per round, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("build/chaos"))
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    harness = Harness(asked.folder.resolve(), asked.images, asked.shards, asked.kills)
    rounds: list[Round] = []
    with harness.server():
        expected = harness.reference()
        for number in range(asked.first, asked.first + asked.rounds):
            # Each round has a seed of its own, so that it can be had again alone
            rounds.append(harness.play(number, random.Random(f"{asked.seed} {number}"), expected))
            print(json.dumps(rounds[-1].row()), flush=True)
    wrong = sum((each.wrong for each in rounds), Counter())
    total = {
        "seed": asked.seed,
        "rounds": len(rounds),
        "kills": dict(sum((each.kills for each in rounds), Counter())),
        "starts": sum(each.starts for each in rounds),
        "images": sum(each.num_images for each in rounds),
        "lost": wrong["lost"],
        "doubled": wrong["doubled"],
        "different": wrong["different"],
        "damage": wrong["damage"],
        "commands_gone_wrong": wrong["commands"],
    }
    print(json.dumps(total), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
