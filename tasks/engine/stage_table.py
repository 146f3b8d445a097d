"""The statistics of a shard's scoring as a table: one line per stage, in the order of the work."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["STAGES", "StageLine", "stage_lines"]

# As an image passes them; `telemetry` says what each one is
STAGES = (
    "load", "read", "admit", "gpu_decode", "decode", "transform", "batch", "copy", "forward",
    "read_out", "post", "encode", "write",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StageLine:
    """What a stage did.

    Attributes:
        name: as in the statistics.
        busy_s: worked, summed over its threads.
        wait_s: stood still for lack of items before it, or of room behind it.
        threads: that it shares with its neighbours; 1 where all stages take turns in one.
        models: of the forward pass: seconds by model key, with the reading of its outputs.
    """

    name: str
    busy_s: float
    wait_s: float
    threads: int
    models: Mapping[str, float]


def stage_lines(stats: Mapping[str, float | int | str]) -> tuple[StageLine, ...]:
    """The stages that did anything.

    Args:
        stats: of a receipt, or of `telemetry.sum_stats`.
    """
    return tuple(
        line for name in STAGES if (line := _line(stats, name)).busy_s > 0 or line.wait_s > 0
    )


def _line(stats: Mapping[str, float | int | str], name: str) -> StageLine:
    busy_s, wait_s = _number(stats, f"{name}_s"), 0.0
    if name == "forward":  # in the statistics the reading of the outputs is part of it
        busy_s = max(0.0, busy_s - _number(stats, "read_out_s"))
    if name == "read":  # threads read ahead; what the scorer sees of it is waiting
        busy_s, wait_s = _number(stats, "read_busy_s"), busy_s
    wait_s += _number(stats, f"starved_s/{name}") + _number(stats, f"blocked_s/{name}")
    models = {
        key.partition("/")[2]: _number(stats, key) for key in stats if key.startswith(f"{name}_s/")
    }
    threads = max(1, int(_number(stats, f"threads/{name}")))
    return StageLine(name, busy_s, wait_s, threads, models)


def _number(stats: Mapping[str, float | int | str], name: str) -> float:
    value = stats.get(name, 0)
    return 0.0 if isinstance(value, str) else float(value)
