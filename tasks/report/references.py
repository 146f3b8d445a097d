"""What is true of the gallery's images, from the files that the evaluation read."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pixelmill.tasks.box_files import Sizes
from pixelmill.tasks.evaluation.truths import load_instances
from pixelmill.tasks.metrics.results import Evaluation
from pixelmill.tasks.truth import load_captions, match_images

__all__ = ["References", "TrueBox", "load_references"]


@dataclass(frozen=True, slots=True)
class TrueBox:
    """A box of the truth in percent of the image."""

    left: float
    top: float
    width: float
    height: float
    class_name: str


@dataclass(frozen=True, slots=True)
class References:
    """Truth by path in the collection.

    Attributes:
        absent: truth files that are no longer where the evaluation read them.
    """

    boxes: dict[str, tuple[TrueBox, ...]] = field(default_factory=dict)
    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


def load_references(
    evaluation: Evaluation | None,
    shown: Iterable[str],
    catalog_paths: Iterable[str],
    read_sizes: Callable[[], Sizes],
) -> References:
    """Read boxes and captions of a few images; masks and label maps are left out.

    Args:
        evaluation: `truth` names its files; None: nothing is known.
        shown: paths of the images wanted.
        catalog_paths: all paths of the collection, which the truth's names are matched with.
        read_sizes: of its images, for truth in VOC or YOLO files.

    Raises:
        ValueError: a truth file has faults.
    """
    wanted = frozenset(shown)
    sources = {
        kind: Path(evaluation.truth[kind])
        for kind in ("instances", "captions")
        if evaluation is not None and kind in evaluation.truth and wanted
    }
    present = {kind: path for kind, path in sources.items() if path.exists()}
    known = list(catalog_paths)
    return References(
        boxes=_boxes(present["instances"], wanted, known, read_sizes)
        if "instances" in present
        else {},
        captions=_captions(present["captions"], wanted, known) if "captions" in present else {},
        absent=tuple(str(path) for kind, path in sources.items() if kind not in present),
    )


def _boxes(
    path: Path,
    wanted: frozenset[str],
    catalog_paths: list[str],
    read_sizes: Callable[[], Sizes],
) -> dict[str, tuple[TrueBox, ...]]:
    truth = load_instances(path, read_sizes() if path.is_dir() else {})
    places = match_images((image.file_name for image in truth.images), catalog_paths).paths
    images = {image.id: image for image in truth.images if places.get(image.file_name) in wanted}
    names = {category.id: category.name for category in truth.categories}
    found: dict[str, list[TrueBox]] = {places[image.file_name]: [] for image in images.values()}
    for annotation in truth.annotations:
        image = images.get(annotation["image_id"])
        if image is None:
            continue
        left, top, width, height = annotation["bbox"]
        found[places[image.file_name]].append(
            TrueBox(
                left=100 * left / image.width,
                top=100 * top / image.height,
                width=100 * width / image.width,
                height=100 * height / image.height,
                class_name=names[annotation["category_id"]],
            )
        )
    return {name: tuple(boxes) for name, boxes in found.items()}


def _captions(
    path: Path, wanted: frozenset[str], catalog_paths: list[str]
) -> dict[str, tuple[str, ...]]:
    truth = load_captions(path)
    places = match_images(truth.file_names, catalog_paths).paths
    return {
        places[name]: captions
        for name, captions in zip(truth.file_names, truth.captions, strict=True)
        if places.get(name) in wanted
    }
