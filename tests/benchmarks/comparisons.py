"""What `test_bench_compare` measures, importable by the processes that it starts."""

from evaluations import Clock, peak_mb

from pixelmill.configs.schema import HealthConfig
from pixelmill.tasks.comparison.compare import compare_sides
from pixelmill.tasks.comparison.save import ImageTable, save_comparison
from pixelmill.tasks.comparison.sides import open_side
from pixelmill.tasks.health.judge import check_health
from pixelmill.tasks.store import Store


def compared(root, folder, versions):
    """Two versions side by side, with the row of every image on disk."""
    start, store = Clock(), Store(root)
    sides = [open_side(key, store) for key in versions]
    with ImageTable(folder) as sink:
        found = compare_sides(*sides, sink=sink)
    save_comparison(found, folder)
    (pair,) = found.pairs
    values = {metric.name: round(metric.value, 4) for metric in pair.headline}
    return pair.num_images, values, {**start.read(), "peak_mb": round(peak_mb())}


def judged(root):
    """The newest night beside the ones before it."""
    start = Clock()
    found = check_health(Store(root), HealthConfig())
    (model,) = found.models
    return len(model.baseline), found.level, {**start.read(), "peak_mb": round(peak_mb())}
