"""Run benchmarks, and write what they measured as JSON and markdown."""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pixelbench.contenders import CONTENDERS
from pixelbench.costs import draw_memory, measure_run
from pixelbench.machine import describe_machine
from pixelbench.passes import measure_passes
from pixelbench.rounds import play
from pixelbench.scaling import measure_shard_costs, predict
from pixelbench.speedup import measure_speedup
from pixelbench.startup import measure_startup
from pixelbench.tables import (
    costs_page,
    fleet_table,
    passes_page,
    scaling_page,
    startup_page,
    throughput_page,
    workers_page,
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

# What was measured, and the part of the page about it, by name; the latter alone is the section's
Parts = dict[str, tuple[dict[str, Any], str]]
Section = Callable[[argparse.Namespace, Path], Iterator[Parts]]


def _throughput(asked: argparse.Namespace, scratch: Path) -> Iterator[Parts]:
    for name in asked.workloads or (ON_CPU if asked.device == "cpu" else ON_GPU):
        count = asked.images or (GPU_IMAGES.get(name) if asked.device != "cpu" else None)
        with_int8 = any(CONTENDERS[each].variant == "int8" for each in asked.contenders)
        workload = make_workload(
            name, scratch, count, with_int8=with_int8 and asked.device == "cpu"
        )
        table = play(
            workload, asked.contenders, scratch, device=asked.device, num_rounds=asked.rounds
        )
        yield {name: (asdict(table), throughput_page([table]))}


def _passes(asked: argparse.Namespace, scratch: Path) -> Iterator[Parts]:
    passes = measure_passes(scratch, num_rounds=asked.rounds, device=asked.device)
    yield {"": ({each.title: asdict(each) for each in passes}, passes_page(passes))}


def _startup(asked: argparse.Namespace, scratch: Path) -> Iterator[Parts]:
    startup = measure_startup(scratch, num_rounds=asked.rounds)
    yield {"": (asdict(startup), startup_page(startup))}


def _costs(asked: argparse.Namespace, scratch: Path) -> Iterator[Parts]:
    costs = {size: measure_run(size, scratch) for size in asked.sizes}
    for size, cost in costs.items():
        if size == 10_000:
            asked.out.joinpath("memory.svg").write_text(draw_memory(cost))
    record = {str(size): asdict(cost) for size, cost in costs.items()}
    yield {"": (record, costs_page([*costs.values()]))}


def _scaling(asked: argparse.Namespace, scratch: Path) -> Iterator[Parts]:
    costs = measure_shard_costs(scratch)
    fleets = {
        title: predict(costs.model(), shard_s=shard_s, num_shards=num_shards)
        for title, (shard_s, num_shards) in FLEET_RUNS.items()
    }
    record = {
        "costs": asdict(costs),
        "fleets": {
            title: {str(workers): asdict(each) for workers, each in outcomes.items()}
            for title, outcomes in fleets.items()
        },
    }
    yield {"": (record, scaling_page(costs) + "\n\n" + fleet_table(fleets))}


def _workers(asked: argparse.Namespace, scratch: Path) -> Iterator[Parts]:
    speedup = measure_speedup(scratch, num_rounds=asked.rounds, num_images=asked.images)
    yield {"": (asdict(speedup), workers_page(speedup))}


SECTIONS: dict[str, Section] = {
    "throughput": _throughput,
    "passes": _passes,
    "startup": _startup,
    "costs": _costs,
    "scaling": _scaling,
    "workers": _workers,
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
            for parts in SECTIONS[name](asked, scratch):
                write_pages(asked.out, name, asked.device, parts, time.perf_counter() - started)
                started = time.perf_counter()


def write_pages(out: Path, name: str, device: str, parts: Parts, seconds: float) -> None:
    """One JSON and one markdown file for a section; its other parts stay as they were measured."""
    stem = name if device == "cpu" else f"{name}-gpu"
    path = out / f"{stem}.json"
    kept: dict[str, Any] = json.loads(path.read_text()).get("parts", {}) if path.exists() else {}
    command = f"python -m pixelbench {name}" + ("" if device == "cpu" else f" --device {device}")
    for part, (record, page) in parts.items():
        kept[part] = {
            "command": f"{command} --workloads {part}" if part else command,
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "seconds": round(seconds),
            "machine": describe_machine(),
            "measured": record,
            "page": page,
        }
    ordered = {part: kept[part] for part in sorted(kept, key=_place)}
    path.write_text(json.dumps(_finite({"parts": ordered}), indent=1) + "\n")
    sections = [f"# {name.capitalize()}", *map(_section, ordered.values())]
    (out / f"{stem}.md").write_text("\n\n".join(sections) + "\n")
    print("\n\n".join(_section(kept[part]) for part in parts), flush=True)


def _place(part: str) -> int:
    names = list(WORKLOADS)
    return names.index(part) if part in names else -1


def _section(part: dict[str, Any]) -> str:
    facts = "; ".join(f"{key} {value}" for key, value in part["machine"].items() if value)
    measured = f"Measured {part['date']} by `{part['command']}` in {part['seconds']} s. {facts}."
    return f"{part['page']}\n\n{measured}"


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
