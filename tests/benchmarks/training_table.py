"""The table of docs/benchmarks/training.md and the list training.json, from what trainings wrote.

    python tests/benchmarks/training_table.py runs/train

reads every `<name>.json` beside its weights. Of membranes (classes membrane, cell) the challenge's
numbers are computed here, from the same predictions that the other numbers are made of.
"""

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pixelmill.models.checkpoint import CheckpointMeta, read_metadata
from pixelmill.tasks.datasets import DataSource
from pixelmill.tasks.holdout import predict_held_out
from pixelmill.tasks.metrics.membranes import pixel_error, rand_score
from pixelmill.tasks.truth import load_semantic, read_label_map

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def entries(folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each number of each training."""
    for path in sorted(folder.glob("*.json")):
        summary = json.loads(path.read_text())
        if not isinstance(summary, dict) or "weights" not in summary:
            continue
        weights = path.with_suffix(".safetensors")
        metadata = read_metadata(weights)
        settings = metadata.training["config"]
        known = {
            "architecture": metadata.architecture,
            "dataset": Path(summary["images"]).parent.name,
            "split": "official list"
            if summary["name"].startswith("camvid")
            else f"file name hash, {settings['train_fraction']:g} trained on",
            "images": summary["num_held_out"],
            "trained_on": summary["num_trained"],
            "parameters": summary["num_parameters"],
            "command": f"pixelmill train {summary['name']}",
            "seconds": round(summary["training_seconds"]),
            "date": datetime.fromtimestamp(weights.stat().st_mtime, UTC).date().isoformat(),
        }
        numbers = dict(summary["metrics"])
        if metadata.classes == ("membrane", "cell"):
            numbers |= membranes(weights, metadata, Path(summary["images"]), path)
        for metric, value in numbers.items():
            low_high = summary["intervals"].get(metric)
            yield {**known, "metric": metric, "value": round(value, 4), "interval": low_high}


def membranes(
    weights: Path, metadata: CheckpointMeta, images: Path, summary: Path
) -> dict[str, float]:
    """Pixel error, Dice of the cells and the foreground-restricted Rand F, over all slices."""
    source = DataSource(images, images.parent / "labels")
    names = summary.with_suffix(".val.txt").read_text().split()
    predictions = predict_held_out(weights, source, names)
    maps = load_semantic(source.truth).maps
    truths = [read_label_map(maps[Path(name).stem]) == 1 for name in names]
    guesses = [predictions[name].semantic == 1 for name in names]
    truth, guess = np.stack(truths), np.stack(guesses)
    overlap = 2 * np.count_nonzero(truth & guess)
    pairs = zip(truths, guesses, strict=True)
    rand = [rand_score(one, other)[0].value for one, other in pairs]
    return {
        "Dice cell": float(overlap / (truth.sum() + guess.sum())),
        "pixel error": pixel_error(truth, guess).value,
        "Rand F": float(np.mean(rand)),
    }


def main(folder: Path) -> None:
    """Write training.json, and the table into training.md."""
    rows = list(entries(folder))
    (DOCS / "training.json").write_text(json.dumps(rows, indent=1) + "\n")
    lines = [
        "| data | architecture | parameters | metric | value | 95 % interval | images | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda each: (each["dataset"], each["architecture"])):
        interval = row["interval"]
        shown = f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        lines.append(
            f"| {row['dataset']} | {row['architecture']} | {row['parameters']:,} | "
            f"{row['metric']} | {row['value']:.3f} | {shown} | "
            f"{row['trained_on']} / {row['images']} | {row['seconds'] / 60:.0f} |"
        )
    page = DOCS / "training.md"
    text = page.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
