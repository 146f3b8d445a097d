"""Interleaved rounds: every contender plays, in turn, on the same images, again and again.

Ratios of rounds that lie seconds apart hold on a machine whose speed drifts; absolute images a
second of separate runs do not. Everybody has loaded and warmed up before the first round counts.
"""

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from pixelbench.agreement import Agreement, compare
from pixelbench.contenders import CONTENDERS
from pixelbench.machine import cpu_seconds, machine_busy_s
from pixelbench.user_code import Result
from pixelbench.workloads import Workload

__all__ = ["Measured", "Round", "Table", "count_clean", "is_rival", "play", "summarise"]

REFERENCE = "naive_1"
# Where other programs disturb, so many times the rounds asked for are played at most
MOST_ROUNDS = 1.4
# Share of the machine's cores that others may have beyond those that a contender leaves free
CLEAN = 0.08
_START_S = 300


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one contender.

    Attributes:
        wall_s: from the first image begun to the last one done.
        cpu_s: of all its processes, what they started included.
        foreign: busy share of the machine's cores that was not the contender's.
        inside: what it measured itself.
    """

    wall_s: float
    cpu_s: float
    foreign: float
    inside: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Measured:
    """A contender's rounds, summed up: medians, with the least and the most in `span`.

    `fixed_s` are seconds of a round of `round_s` that would be no more with more images;
    `of_bound` is its share of what the stages alone gave in its own processes, after each round.
    """

    title: str
    num_cores: int
    images_per_s: float
    span: tuple[float, float]
    cpu_s_per_image: float
    foreign: float
    num_rounds: int
    stages: Mapping[str, float] = field(default_factory=dict)
    agreement: Agreement | None = None
    round_s: float = 0.0
    fixed_s: float = 0.0
    of_bound: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """One workload's contenders, by name; `skipped` says why the others are not there.

    `settings` says Pixelmill's engine, precision and decoding: the common ones, the fastest, and
    those of int8 if there are any.
    """

    title: str
    num_images: int
    settings: Mapping[str, str]
    rows: Mapping[str, Measured]
    skipped: Mapping[str, str]


class _Player:
    """A contender's processes."""

    def __init__(self, name: str, workload_path: Path, device: str, scratch: Path) -> None:
        self.name, self.kind = name, CONTENDERS[name]
        self._scratch = scratch
        self._processes = [
            _start(name, workload_path, part, device, scratch / f"{name}-{part}")
            for part in range(self.kind.num_processes)
        ]
        self._trees = [psutil.Process(each.pid) for each in self._processes]

    def wait_ready(self) -> None:
        self._replies()

    def play(self) -> Round:
        cpu_before, busy_before = cpu_seconds(self._trees), machine_busy_s()
        started = time.monotonic()
        self._tell("score")
        replies = self._replies()
        elapsed = time.monotonic() - started
        cpu_s, busy_s = cpu_seconds(self._trees) - cpu_before, machine_busy_s() - busy_before
        wall_s = max(each["ended"] for each in replies) - min(each["started"] for each in replies)
        inside = {
            key: sum(each[key] for each in replies)
            for key in replies[0]
            if key not in ("started", "ended")
        }
        return Round(
            wall_s=inside.pop("wall_s", wall_s),
            cpu_s=inside.pop("cpu_s", cpu_s),
            foreign=max(0.0, busy_s - cpu_s) / (elapsed * (os.cpu_count() or 1)),
            inside=inside,
        )

    def results(self) -> dict[str, Result]:
        found: dict[str, Result] = {}
        for index, process in enumerate(self._processes):
            path = self._scratch / f"{self.name}-{index}.pickle"
            print(f"results {path}", file=process.stdin, flush=True)
        self._replies()
        for index in range(len(self._processes)):
            found |= pickle.loads((self._scratch / f"{self.name}-{index}.pickle").read_bytes())
        return found

    def close(self) -> None:
        for process in self._processes:
            if process.stdin:
                process.stdin.close()
        for process in self._processes:
            process.wait(timeout=_START_S)

    def _tell(self, command: str) -> None:
        for process in self._processes:
            print(command, file=process.stdin, flush=True)

    def _replies(self) -> list[dict[str, Any]]:
        replies = []
        for process in self._processes:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                log = (self._scratch / f"{self.name}.log").read_text()[-3000:]
                raise RuntimeError(f"{self.name} ended with {process.wait()}:\n{log}")
            replies.append(json.loads(line))
        return replies


def _start(
    name: str, workload_path: Path, part: int, device: str, scratch: Path
) -> "subprocess.Popen[str]":
    scratch.mkdir(parents=True, exist_ok=True)
    threads = str(CONTENDERS[name].num_cores // CONTENDERS[name].num_processes)
    environment = dict(os.environ, PYTHONPATH=_python_path())
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    with (scratch.parent / f"{name}.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "pixelbench.worker", name, str(workload_path), str(part),
             device, str(scratch)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
        )  # fmt: skip


@contextmanager
def _started(
    names: Sequence[str], workload_path: Path, device: str, scratch: Path
) -> Iterator[tuple[list[_Player], dict[str, str]]]:
    """Contenders that have loaded, and why others could not; ended at the end.

    One after the other: beside others that load, Ray gives its own start up.

    Raises:
        RuntimeError: one of ours could not.
    """
    players: list[_Player] = []
    broken: dict[str, str] = {}
    try:
        for name in names:
            players.append(_Player(name, workload_path, device, scratch))
            try:
                players[-1].wait_ready()
            except RuntimeError as err:
                if not is_rival(name):
                    raise
                broken[name] = f"did not start: {str(err).strip().splitlines()[-1]}"
                players.pop().close()
        yield players, broken
    finally:
        for player in players:
            player.close()


def _play_rounds(players: Sequence[_Player], num_rounds: int) -> dict[str, list[Round]]:
    rounds: dict[str, list[Round]] = {player.name: [] for player in players}
    for number in range(int(MOST_ROUNDS * num_rounds)):
        for player in players if number % 2 == 0 else players[::-1]:
            rounds[player.name].append(player.play())
        if all(count_clean(name, each) >= num_rounds for name, each in rounds.items()):
            break
    return rounds


def _python_path() -> str:
    """The caller's, with this package on it."""
    return os.pathsep.join(
        [str(Path(__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    )


def play(
    workload: Workload,
    names: Sequence[str],
    scratch: Path,
    *,
    device: str = "cpu",
    num_rounds: int = 5,
) -> Table:
    """Time contenders on one workload.

    Args:
        workload: what is scored.
        names: of `CONTENDERS`; those that cannot play are skipped, and it is said why.
        scratch: folder for stores and logs.
        device: "cpu" or "cuda".
        num_rounds: that count, after one that does not. Rounds that other programs disturb are
            played again, at most as many; the least disturbed count.

    Raises:
        RuntimeError: a contender broke.
        ValueError: a contender found something else than the others.
    """
    folder = scratch / workload.name
    folder.mkdir(parents=True, exist_ok=True)
    skipped = {name: why for name in names if (why := _why_not(name, workload, device))}
    playing = [name for name in names if name not in skipped]
    path = workload.save(folder / "workload.pickle")
    rounds: dict[str, list[Round]] = {}
    found: dict[str, dict[str, Result]] = {}
    # Those with as many cores as each other are compared, and all at once would fill the memory
    for num_cores in sorted({CONTENDERS[name].num_cores for name in playing}):
        group = [name for name in playing if CONTENDERS[name].num_cores == num_cores]
        with _started(group, path, device, folder) as (players, broken):
            skipped |= broken
            for player in players:
                player.play()
            found |= {player.name: results for player in players if (results := player.results())}
            _check_names(found, workload)
            _check(found)
            rounds |= _play_rounds(players, num_rounds)
    agreements = _agreements(found)
    return Table(
        title=workload.title,
        num_images=len(workload.paths),
        settings={
            "": _settings(workload),
            "fastest": _settings(workload.variant("best")),
            **(
                {}
                if isinstance(workload.int8, str)
                else {"int8": _settings(workload.variant("int8"))}
            ),
        },
        rows={
            name: summarise(
                name,
                sorted(rounds[name], key=lambda each: each.foreign)[:num_rounds],
                sum(map(len, CONTENDERS[name].parts(workload.paths))),
                agreements.get(name),
            )
            for name in playing
            if name not in skipped
        },
        skipped=skipped,
    )


def _settings(workload: Workload) -> str:
    (spec,) = workload.specs
    how = f"{spec.engine} {spec.precision}, {spec.preprocess.decode} decoding"
    return f"{how}, batches of {spec.batch_size}"


def _why_not(name: str, workload: Workload, device: str) -> str | None:
    kind = CONTENDERS[name]
    if kind.variant == "int8" and isinstance(workload.int8, str):
        return workload.int8
    if kind.only and workload.loop not in kind.only:
        return "is not for such a model"
    if kind.needs and find_spec(kind.needs) is None:
        return f"{kind.needs} is not installed: pip install 'pixelmill[bench]'"
    if device != "cpu" and not kind.on_gpu:
        return "is for CPUs"
    return None


def _agreements(found: Mapping[str, dict[str, Result]]) -> dict[str, Agreement]:
    """What each contender found beside the reference."""
    reference = found.get(REFERENCE)
    if reference is None:
        return {}
    agreements = {}
    for name, results in found.items():
        both = reference.keys() & results.keys()
        if name != REFERENCE and both:
            first, second = ({key: each[key] for key in both} for each in (reference, results))
            agreements[name] = compare(first, second)
    return agreements


def _check_names(found: Mapping[str, dict[str, Result]], workload: Workload) -> None:
    """Stop where somebody has left images out."""
    for name, results in found.items():
        played = {path.name for part in CONTENDERS[name].parts(workload.paths) for path in part}
        if not played <= results.keys():
            raise ValueError(f"{name} scored {len(results)} of {len(played)} images")


def is_rival(name: str) -> bool:
    """Whether it is what users run instead, and neither ours nor a limit."""
    ours = ("forward", "decode", "stages", "pixelmill", "best", "int8")
    return not name.startswith(ours)


def _check(found: Mapping[str, dict[str, Result]]) -> None:
    """Stop before anything is timed that did not do the same work."""
    wrong = {
        name: each
        for name, each in _agreements(found).items()
        if not each.is_equal and not CONTENDERS[name].variant
    }
    if wrong:
        raise ValueError(f"not the same results as {REFERENCE}: {wrong}")


def count_clean(name: str, rounds: Sequence[Round]) -> int:
    """Rounds in which others had next to nothing of the cores that the contender used."""
    free = max(0.0, 1 - CONTENDERS[name].num_cores / (os.cpu_count() or 1))
    return sum(each.foreign <= free + CLEAN for each in rounds)


def summarise(
    name: str, rounds: Sequence[Round], num_images: int, agreement: Agreement | None
) -> Measured:
    """Medians over the rounds of one contender."""
    kind = CONTENDERS[name]
    rates = sorted(num_images / each.wall_s for each in rounds)
    return Measured(
        title=kind.title,
        num_cores=kind.num_cores,
        images_per_s=median(rates),
        span=(rates[0], rates[-1]),
        cpu_s_per_image=median(each.cpu_s for each in rounds) / num_images,
        foreign=median(each.foreign for each in rounds),
        num_rounds=len(rounds),
        stages={
            key: median(each.inside[key] for each in rounds) / num_images
            for key in rounds[0].inside
            if key.startswith("cpu_s/")
        },
        agreement=agreement,
        round_s=median(each.wall_s for each in rounds),
        fixed_s=median(each.inside.get("fixed_s", 0.0) for each in rounds),
        of_bound=median(each.inside["bound_s"] / each.wall_s for each in rounds)
        if "bound_s" in rounds[0].inside
        else None,
    )
