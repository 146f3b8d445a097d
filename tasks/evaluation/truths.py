"""The truth that a configuration names, loaded and cut to a subset."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pixelmill.configs.schema import EvaluationConfig
from pixelmill.tasks.box_files import Sizes, load_boxes
from pixelmill.tasks.evaluation.context import read_sizes
from pixelmill.tasks.metrics.detection import InstanceTruth
from pixelmill.tasks.names import name_fault
from pixelmill.tasks.store import Store
from pixelmill.tasks.truth import (
    CaptionTruth,
    LabelTruth,
    SemanticTruth,
    load_captions,
    load_labels,
    load_semantic,
    without_suffix,
)

__all__ = ["Truths", "load_instances", "load_truths"]


@dataclass(frozen=True, slots=True)
class Truths:
    """What the config names, loaded."""

    instances: InstanceTruth | None
    semantic: SemanticTruth | None
    captions: CaptionTruth | None
    labels: LabelTruth | None
    sources: dict[str, str]

    def names(self) -> set[str]:
        """All images that any of it speaks of; those of label maps have no suffix."""
        names: set[str] = set()
        if self.instances is not None:
            names |= {image.file_name for image in self.instances.images}
        if self.semantic is not None:
            names |= set(self.semantic.maps)
        if self.captions is not None:
            names |= set(self.captions.file_names)
        if self.labels is not None:
            names |= set(self.labels.labels)
        return names


def load_truths(config: EvaluationConfig, base: Path, store: Store, collection: str) -> Truths:
    """All truth of the configuration, of the images of its subset.

    Args:
        config: where truth is.
        base: folder that relative paths in `config` start from.
        store: that knows the sizes of the images, for truth in VOC or YOLO files.
        collection: whose images are evaluated.

    Raises:
        ValueError: the config names no truth, or a file has faults.
        FileNotFoundError: a file is not there.
    """
    truth = _load(config, base, partial(read_sizes, store, collection))
    return truth if config.subset is None else _restrict(truth, base / config.subset)


def load_instances(truth: Path, sizes: Sizes) -> InstanceTruth:
    """Boxes and masks in any format, also of images that nobody could read or has scored.

    The size of such an image is unknown to VOC and YOLO files. That of most others is taken: only
    into which range of areas its objects are counted depends on it.

    Args:
        truth: COCO JSON, or a folder of VOC *.xml or of YOLO *.txt.
        sizes: of the collection's images.
    """
    known = Counter(size for size in sizes.values() if size is not None)
    usual = known.most_common(1)[0][0] if known else (1, 1)
    return load_boxes(truth, sizes, unknown=usual)


def _load(config: EvaluationConfig, base: Path, read_sizes: Callable[[], Sizes]) -> Truths:
    places = {
        name: base / place
        for name in ("instances", "semantic", "captions", "labels")
        if (place := getattr(config, name)) is not None
    }
    if not places:
        raise ValueError(
            "the evaluation section names no truth; set instances, semantic, captions or labels"
        )
    absent = [f"{name}: {place}" for name, place in places.items() if not place.exists()]
    if absent:
        raise FileNotFoundError(
            "truth is not there:\n  "
            + "\n  ".join(absent)
            + f"\nrelative paths start from {base}; correct them, or leave the entry out"
        )
    instances = places.get("instances")
    # COCO JSON says the sizes itself
    sizes = read_sizes() if instances is not None and instances.is_dir() else {}
    return Truths(
        instances=None if instances is None else load_instances(instances, sizes),
        semantic=load_semantic(places["semantic"]) if "semantic" in places else None,
        captions=load_captions(places["captions"]) if "captions" in places else None,
        labels=load_labels(places["labels"]) if "labels" in places else None,
        sources={name: str(place) for name, place in places.items()},
    )


def _restrict(truth: Truths, subset: Path) -> Truths:
    """The truth of the images that a file names."""
    if not subset.exists():
        raise FileNotFoundError(f"subset {subset} is not there; correct it, or leave it out")
    lines = subset.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if fault := name_fault(line.strip()):
            raise ValueError(f"{subset}, line {number}: {fault}")
    wanted = {without_suffix(line.strip()) for line in lines if line.strip()}
    known = {without_suffix(name) for name in truth.names()}
    if absent := sorted(wanted - known):
        raise ValueError(f"{subset} names {len(absent)} images without truth, first {absent[0]!r}")

    def keep(name: str) -> bool:
        return without_suffix(name) in wanted

    instances, captions = truth.instances, truth.captions
    if instances is not None:
        images = tuple(image for image in instances.images if keep(image.file_name))
        ids = {image.id for image in images}
        annotations = tuple(each for each in instances.annotations if each["image_id"] in ids)
        instances = replace(instances, images=images, annotations=annotations)
    if captions is not None:
        pairs = zip(captions.file_names, captions.captions, strict=True)
        kept = [(name, texts) for name, texts in pairs if keep(name)]
        captions = CaptionTruth(tuple(name for name, _ in kept), tuple(texts for _, texts in kept))
    semantic, labels = truth.semantic, truth.labels
    if semantic is not None:
        maps = {stem: path for stem, path in semantic.maps.items() if keep(stem)}
        semantic = replace(semantic, maps=maps)
    if labels is not None:
        labels = LabelTruth({name: each for name, each in labels.labels.items() if keep(name)})
    sources = {**truth.sources, "subset": str(subset)}
    return Truths(instances, semantic, captions, labels, sources)
