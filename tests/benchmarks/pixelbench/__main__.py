"""Run benchmarks, and write what they measured as JSON and markdown."""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pixelbench.contenders import CONTENDERS
from pixelbench.costs import draw_memory, measure_run
from pixelbench.machine import describe_machine
from pixelbench.passes import measure_passes
from pixelbench.rounds import play
from pixelbench.scaling import measure_shard_costs, measure_speedup, predict
from pixelbench.startup import measure_startup
from pixelbench.tables import (
    costs_page,
    fleet_table,
    passes_page,
    scaling_page,
    startup_page,
    throughput_page,
)
from pixelbench.workloads import WORKLOADS, make_workload

ON_CPU = ("ssdlite", "instances", "heavy", "segmenter", "captioner", "identity")
ON_GPU = ("heavy", "maskrcnn", "deeplabv3", "captioner", "ssdlite", "identity")
# A GPU needs more images than a core to show what it does
GPU_IMAGES = {"heavy": 256, "maskrcnn": 128, "deeplabv3": 128, "captioner": 512, "ssdlite": 1024}
RUN_SIZES = (1_000, 10_000, 100_000)
FLEET_RUNS = {
    "1e6 images, shards of 10 s": (10.0, 4_000),
    "1e6 images, shards of 60 s": (60.0, 1_000),
    "1e9 images, shards of 60 s": (60.0, 1_000_000),
}

Section = Callable[[argparse.Namespace, Path], tuple[dict[str, Any], str]]


def _throughput(asked: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], str]:
    tables = {}
    for name in asked.workloads or (ON_CPU if asked.device == "cpu" else ON_GPU):
        count = asked.images or (GPU_IMAGES.get(name) if asked.device != "cpu" else None)
        workload = make_workload(name, scratch, count)
        tables[name] = play(
            workload, asked.contenders, scratch, device=asked.device, num_rounds=asked.rounds
        )
        print(throughput_page([tables[name]]), flush=True)
    return {name: asdict(table) for name, table in tables.items()}, throughput_page(
        [*tables.values()]
    )


def _passes(asked: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], str]:
    passes = measure_passes(scratch, num_rounds=asked.rounds, device=asked.device)
    return {each.title: asdict(each) for each in passes}, passes_page(passes)


def _startup(asked: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], str]:
    startup = measure_startup(scratch, num_rounds=asked.rounds)
    return asdict(startup), startup_page(startup)


def _costs(asked: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], str]:
    costs = {size: measure_run(size, scratch) for size in asked.sizes}
    for size, cost in costs.items():
        if size == 10_000:
            asked.out.joinpath("memory.svg").write_text(draw_memory(cost))
    return {str(size): asdict(cost) for size, cost in costs.items()}, costs_page([*costs.values()])


def _scaling(asked: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], str]:
    costs = measure_shard_costs(scratch)
    speedup = measure_speedup(scratch, num_rounds=asked.rounds)
    fleets = {
        title: predict(costs.model(), shard_s=shard_s, num_shards=num_shards)
        for title, (shard_s, num_shards) in FLEET_RUNS.items()
    }
    record = {
        "costs": asdict(costs),
        "speedup": asdict(speedup),
        "fleets": {
            title: {str(workers): asdict(each) for workers, each in outcomes.items()}
            for title, outcomes in fleets.items()
        },
    }
    return record, scaling_page(costs, speedup) + "\n\n" + fleet_table(fleets)


SECTIONS: dict[str, Section] = {
    "throughput": _throughput,
    "passes": _passes,
    "startup": _startup,
    "costs": _costs,
    "scaling": _scaling,
}


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="pixelbench", description=__doc__)
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), help=", ".join(SECTIONS))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="for the pages")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=5, help="that count")
    parser.add_argument("--workloads", nargs="*", help=", ".join(WORKLOADS))
    parser.add_argument("--contenders", nargs="*", default=list(CONTENDERS))
    parser.add_argument("--images", type=int, help="per workload, instead of its own number")
    parser.add_argument("--sizes", nargs="*", type=int, default=list(RUN_SIZES), help="of `costs`")
    parser.add_argument("--scratch", type=Path, help="kept; left out: a temporary folder")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="pixelbench-") as temporary:
        scratch = asked.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        for name in asked.sections:
            started = time.perf_counter()
            record, page = SECTIONS[name](asked, scratch)
            write_pages(asked.out, name, asked.device, record, page, time.perf_counter() - started)


def write_pages(
    out: Path, name: str, device: str, record: dict[str, Any], page: str, seconds: float
) -> None:
    """One JSON and one markdown file for a section."""
    machine = describe_machine()
    stem = name if device == "cpu" else f"{name}-gpu"
    command = f"python -m pixelbench {name}" + ("" if device == "cpu" else f" --device {device}")
    whole = {"command": command, "seconds": round(seconds), "machine": machine, name: record}
    text = json.dumps(_finite(whole), indent=1) + "\n"
    (out / f"{stem}.json").write_text(text)
    facts = "; ".join(f"{key} {value}" for key, value in machine.items() if value)
    title = f"# {name.capitalize()}\n\nCommand: `{command}` ({seconds:.0f} s). {facts}.\n\n"
    (out / f"{stem}.md").write_text(f"{title}{page}\n")
    print(f"{title}{page}\n", flush=True)


def _finite(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value


if __name__ == "__main__":
    main()
