"""Measurements as the markdown pages of docs/benchmarks."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from pixelbench.cluster_model import Outcome
from pixelbench.costs import RunCost
from pixelbench.passes import Passes
from pixelbench.rounds import Measured, Table, is_rival
from pixelbench.scaling import ShardCosts
from pixelbench.speedup import Speedup
from pixelbench.startup import Startup

__all__ = [
    "costs_page",
    "fleet_table",
    "markdown_table",
    "passes_page",
    "scaling_page",
    "startup_page",
    "throughput_page",
    "workers_page",
]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def throughput_page(tables: Sequence[Table]) -> str:
    """Each workload's contenders, by the cores that they have."""
    return "\n\n".join(_workload_section(table) for table in tables)


def startup_page(startup: Startup) -> str:
    """Start-up beside what Python needs anyway."""
    rows = [("import torch, torchvision", startup.import_s, math.nan)]
    rows.append(("that, and the three models loaded", startup.load_s, math.nan))
    rows += [
        (f"`pixelmill score --preset demo --cluster {cluster}`", startup.commit_s[cluster], total)
        for cluster, total in startup.total_s.items()
    ]
    return markdown_table(
        ("command", "s to the first committed image", "s to its end"),
        [
            (name, f"{first:.2f}", "" if math.isnan(end) else f"{end:.2f}")
            for name, first, end in rows
        ],
    )


def passes_page(passes: Sequence[Passes]) -> str:
    """One pass against several."""
    return markdown_table(
        ("models", "images", "one pass, s", "a pass each, s", "ratio (median, min - max)"),
        [
            (
                each.title,
                str(each.num_images),
                f"{each.together_s:.2f}",
                f"{sum(each.apart_s.values()):.2f}",
                f"{median(each.ratios):.2f} ({min(each.ratios):.2f} - {max(each.ratios):.2f})",
            )
            for each in passes
        ],
    )


def costs_page(costs: Sequence[RunCost]) -> str:
    """Milliseconds per image by step, and memory."""
    steps = list(costs[0].seconds)
    header = (
        "images",
        *(f"{step}, ms" for step in steps),
        "together, ms",
        "store, bytes per image",
        "memory: end - start, MB",
    )
    rows = [
        (
            f"{cost.num_images:,}",
            *(f"{cost.ms_per_image[step]:.3f}" for step in steps),
            f"{sum(cost.ms_per_image.values()):.3f}",
            f"{cost.store_bytes / cost.num_images:.0f}",
            f"{cost.growth_MB:+.0f} of {max(cost.memory_MB)}",
        )
        for cost in costs
    ]
    return markdown_table(header, rows)


def scaling_page(costs: ShardCosts) -> str:
    """What a shard costs the run."""
    rows = [("driver, scheduler and back, per shard", f"{costs.driver_ms:.2f}")]
    for size, ms in costs.read_plan_ms.items():
        plan = f"a plan of {size:,} images ({costs.plan_bytes[size] / 1e6:.1f} MB)"
        rows.append((f"read a shard's rows of {plan}", f"{ms:.1f}"))
    rows += [("commit a shard of 256 images", f"{costs.receipt_ms:.1f}")]
    rows += [
        (f"list {count:,} receipts", f"{ms:.1f}") for count, ms in costs.list_receipts_ms.items()
    ]
    rows += [
        (f"publish 64 receipts, the last of {count:,}", f"{ms:.0f}")
        for count, ms in costs.publish_ms.items()
    ]
    return markdown_table(("step", "ms"), rows)


def workers_page(speedup: Speedup) -> str:
    """One worker against more."""
    header = ("workers", "images/s", "min - max", "to one worker", "min - max", "CPU ms/image",
              "others had")  # fmt: skip
    rows = []
    for workers, rounds in speedup.rounds.items():
        rates = [each.images_per_s for each in rounds]
        ratios = speedup.ratios(workers)
        rows.append(
            (
                str(workers),
                f"{speedup.images_per_s(workers):.1f}",
                f"{min(rates):.1f} - {max(rates):.1f}",
                f"{median(ratios):.2f}",
                f"{ratios[0]:.2f} - {ratios[-1]:.2f}",
                f"{1e3 * median(each.cpu_s_per_image for each in rounds):.1f}",
                _percent(median(each.foreign for each in rounds)),
            )
        )
    lines = (
        f"{speedup.title}; the same {speedup.num_images} images in the same {speedup.num_shards} "
        f"shards, medians of {len(speedup.rounds[1])} rounds in turn, ratios round by round. A "
        "worker is a process of one thread. A run of N workers is confined to N cores, or to the "
        f"{speedup.num_cores} that there are, together with its scheduler and its driver: more "
        f"workers than {speedup.num_cores} measure oversubscription, not growth. Started workers, "
        "the model loaded; from the first shard submitted to the last one committed to disk. "
        "*Others had* that share of the machine's cores, driver and workers of the run left out."
    )
    return markdown_table(header, rows) + "\n\n" + lines


def fleet_table(outcomes: Mapping[str, Mapping[int, Outcome]]) -> str:
    """Fleets by size and run."""
    rows = [
        (
            title,
            f"{workers:,}",
            _duration(outcome.makespan_s),
            _percent(outcome.efficiency),
            _percent(outcome.steady),
            _percent(outcome.driver_busy),
            _percent(outcome.publisher_busy),
        )
        for title, by_size in outcomes.items()
        for workers, outcome in by_size.items()
    ]
    header = ("run", "workers", "takes", "efficiency", "steady", "driver busy", "publisher busy")
    return markdown_table(header, rows)


def _workload_section(table: Table) -> str:
    lines = [f"### {table.title}, {table.num_images} images", ""]
    header = ("", "cores", "images/s", "min - max", "CPU ms/image", "of bound", "Pixelmill is",
              "same results")  # fmt: skip
    lines.append(
        markdown_table(header, [_row(name, each, table) for name, each in table.rows.items()])
    )
    lines += [
        "",
        "Pixelmill: "
        + "; ".join(
            f"{name} settings: {text}" if name else text for name, text in table.settings.items()
        )
        + ".",
    ]
    stages = table.rows["stages_1"].stages if "stages_1" in table.rows else {}
    if stages:
        parts = ", ".join(f"{key.partition('/')[2]} {1e3 * s:.2f}" for key, s in stages.items())
        lines += ["", f"CPU ms per image in the stages alone: {parts}."]
    fixed = [
        f"{each.fixed_s:.2f} of {each.round_s:.1f} s ({each.title})"
        for each in table.rows.values()
        if each.fixed_s
    ]
    if fixed:
        lines += ["", f"A shard's start, writing and commit in a round: {', '.join(fixed)}."]
    lines += [f"\nSkipped: {name}, {why}." for name, why in table.skipped.items()]
    return "\n".join(lines)


def _row(name: str, row: Measured, table: Table) -> tuple[str, ...]:
    return (
        row.title,
        str(row.num_cores),
        f"{row.images_per_s:.2f}",
        f"{row.span[0]:.2f} - {row.span[1]:.2f}",
        f"{1e3 * row.cpu_s_per_image:.2f}",
        _share_of_bound(row, table),
        _ratios(row, table) if is_rival(name) else "",
        _percent(row.agreement.share) if row.agreement else "",
    )


def _share_of_bound(row: Measured, table: Table) -> str:
    """Of its own processes' bound where that was taken, else of the one that is in the table."""
    if row.of_bound is not None:
        return f"{row.of_bound:.2f}"
    bound = table.rows.get(f"stages_{row.num_cores}")
    return f"{row.images_per_s / bound.images_per_s:.2f}" if bound else ""


def _ratios(row: Measured, table: Table) -> str:
    """How many times as fast Pixelmill is with the same settings, the fastest, and in int8."""
    ours = (table.rows.get(f"{kind}_{row.num_cores}") for kind in ("pixelmill", "best", "int8"))
    return " / ".join(f"{each.images_per_s / row.images_per_s:.2f}x" for each in ours if each)


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
