"""Which images the gallery shows, and what is drawn over them."""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pandas as pd

from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.metrics.results import Evaluation, Kind, Mistake, ModelEvaluation
from pixelmill.tasks.report.layers import Layer, build_layer, read_rows
from pixelmill.tasks.report.palette import ClassColours
from pixelmill.tasks.report.pictures import EDGES, encode_picture
from pixelmill.tasks.report.references import References, TrueBox
from pixelmill.tasks.store import Store
from pixelmill.tasks.thumbnails import load_picture

__all__ = [
    "Mark",
    "Numbers",
    "Pick",
    "Tile",
    "build_tiles",
    "choose_images",
    "mistake_reason",
    "ranking_name",
]

# Pictures of all tiles together, before base64, so that a report stays small enough to mail.
_PICTURES_BYTES = 11_000_000
_MAX_PICTURE_BYTES = 120_000
# of the numbers per image, the one that ranks: higher is better
_RANKING = ("F1", "mIoU", "CIDEr-D", "top-1")


@dataclass(frozen=True, slots=True)
class Pick:
    """An image of the gallery.

    Attributes:
        reasons: why it was chosen: "weakest", "strongest", "random", "empty", "failed", or the
            kinds of its mistakes as in `mistake_reason`.
    """

    path: str
    image_id: str | None
    source_uri: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Numbers:
    """What one evaluation says of an image."""

    model_key: str
    kind: Kind
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Mark:
    """A mistake in percent of the image.

    Attributes:
        number: position of the model in the report.
        reason: as in `mistake_reason`; `text` says it in full.
        class_number: as of boxes, -1 of a class that no model has.
        score: of the detection; 1 of a miss, which has none.
    """

    number: int
    reason: str
    text: str
    class_number: int
    score: float
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Tile:
    """One image of the gallery, ready to be drawn.

    Attributes:
        anchor: identifies the tile in links: the image_id, or the path's digest without one.
        picture: data URI, or None with the reason in `note`.
        width: of the original in pixels, 0 if unknown; height likewise.
    """

    anchor: str
    path: str
    image_id: str | None
    width: int
    height: int
    picture: str | None
    note: str
    reasons: tuple[str, ...]
    layers: tuple[Layer, ...]
    numbers: tuple[Numbers, ...]
    true_boxes: tuple[TrueBox, ...] = ()
    true_captions: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()


def mistake_reason(kind: str) -> str:
    """A kind of error as one word, for attributes of the page."""
    return kind.replace(" ", "-")


def ranking_name(result: ModelEvaluation) -> str | None:
    """Which of the numbers per image says how well the image went; None without any."""
    names = list(dict.fromkeys(name for row in result.per_image for name in row.values))
    return next((name for name in _RANKING if name in names), names[0] if names else None)


def _rankings(evaluation: Evaluation | None) -> list[list[str]]:
    """Per evaluated model: image paths, lowest value first; undefined ones left out."""
    ranked = []
    for result in evaluation.models if evaluation else ():
        name = ranking_name(result)
        values = [
            (row.values[name], row.path)
            for row in result.per_image
            if name in row.values and math.isfinite(row.values[name])
        ]
        ranked.append([path for _, path in sorted(values)])
    return ranked


def _alternate(lists: Sequence[Sequence[str]], count: int) -> list[str]:
    """The first `count` different names, taking turns among the lists."""
    longest = max(map(len, lists), default=0)
    turns = (names[i] for i in range(longest) for names in lists if i < len(names))
    return list(dict.fromkeys(turns))[:count]


def _mistaken(evaluation: Evaluation | None) -> dict[str, list[str]]:
    """Per model and kind of error: paths with it, the worst first."""
    paths: dict[tuple[str, str, str], list[str]] = {}
    for result in evaluation.models if evaluation else ():
        for mistake in result.mistakes:
            key = (result.model_key, result.kind, mistake.kind)
            paths.setdefault(key, []).append(mistake.path)
    return {" ".join(key): found for key, found in paths.items()}


def choose_images(
    images: pd.DataFrame,
    evaluation: Evaluation | None,
    *,
    failed: Mapping[str, str],
    empty_ids: frozenset[str],
    count: int,
) -> list[Pick]:
    """A spread that depends on nothing but its arguments.

    A tenth each at most for failed images and for those where nothing was found; of the rest, with
    an evaluation, two fifths are the weakest, one fifth the strongest and the others random; where
    it names mistakes, these take half of the weakest's share and half of the random ones'. Without
    evaluation all are random. Models and kinds of mistakes take turns. Random is the order of the
    image_id, which is a digest.

    Args:
        images: path, image_id and source_uri of every image that may be shown.
        evaluation: its `per_image` rows name images by path and rank them, its `mistakes` too.
        failed: path -> source_uri of images that could not be scored.
        empty_ids: image_ids with an empty prediction.
        count: images at most.

    Returns:
        Each image_id once, in the order: mistaken, weakest, random, strongest, empty, failed.
    """
    known = images.dropna(subset=["image_id"]).drop_duplicates("image_id")
    known = known[~known["path"].isin(list(failed))].sort_values("image_id")
    id_of = dict(zip(known["path"], known["image_id"], strict=True))
    uri_of = dict(zip(known["path"], known["source_uri"], strict=True))
    ranked = [[path for path in paths if path in id_of] for paths in _rankings(evaluation)]
    special = count // 10
    failed_paths = sorted(failed)[: special or int(not len(known))]
    empty = [path for path in id_of if id_of[path] in empty_ids][:special]
    left = count - len(failed_paths) - len(empty)
    mistakes = [
        [path for path in paths if path in id_of] for paths in _mistaken(evaluation).values()
    ]
    mistaken = _alternate(mistakes, left * 2 // 5)
    weakest = _alternate(ranked, left // 5 if mistaken else left * 2 // 5)
    strongest = [
        path
        for path in _alternate([paths[::-1] for paths in ranked], left // 5)
        if path not in weakest
    ]
    taken = {*mistaken, *weakest, *strongest, *empty}
    num_random = count - len(failed_paths) - len(taken)
    random = [path for path in id_of if path not in taken][: max(num_random, 0)]
    reasons: dict[str, list[str]] = {path: [] for path in mistaken}
    for reason, paths in (
        ("weakest", weakest),
        ("random", random),
        ("strongest", strongest),
        ("empty", empty),
        ("failed", failed_paths),
    ):
        for path in paths:
            reasons.setdefault(path, []).append(reason)
    for result in evaluation.models if evaluation else ():
        for mistake in result.mistakes:
            kinds = reasons.get(mistake.path)
            if kinds is not None and mistake_reason(mistake.kind) not in kinds:
                kinds.append(mistake_reason(mistake.kind))
    return [
        Pick(path, id_of.get(path), uri_of.get(path) or failed[path], tuple(why))
        for path, why in reasons.items()
    ]


def _read_picture(source_uri: str, max_bytes: int) -> tuple[str | None, str, tuple[int, int]]:
    """Data URI or None, what is wrong with the file, and the original's (H, W) or (0, 0)."""
    picture = load_picture(source_uri, EDGES[0])
    note = f"not readable: {picture.reason}" if picture.reason else ""
    if picture.pixels is None:
        return None, note, (0, 0)
    uri = encode_picture(picture.pixels, max_bytes=max_bytes)
    return uri, note, (picture.height, picture.width)


def _marks(
    mistakes: Iterable[tuple[int, Mistake]], size: tuple[int, int], colours: ClassColours
) -> tuple[Mark, ...]:
    """Mistakes by the position of their model; what boxes and masks have in common, once."""
    height, width = size
    marks: dict[tuple[int, str, int | None, tuple[float, ...]], Mark] = {}
    for number, mistake in mistakes:
        left, top, right, bottom = mistake.box_xyxy
        where = () if mistake.rank is not None else tuple(map(round, mistake.box_xyxy))
        mark = Mark(
            number=number,
            reason=mistake_reason(mistake.kind),
            text=_say(mistake),
            class_number=colours.numbers.get(mistake.class_name, -1),
            score=1.0 if mistake.score is None else mistake.score,
            left=100 * left / width,
            top=100 * top / height,
            width=100 * (right - left) / width,
            height=100 * (bottom - top) / height,
        )
        marks.setdefault((number, mistake.kind, mistake.rank, where), mark)
    return tuple(marks.values())


def _say(mistake: Mistake) -> str:
    """What is wrong, as short as fits beside a box."""
    score = "" if mistake.score is None else f" {mistake.score:.2f}"
    found = f"{mistake.class_name}{score}"
    overlap = "" if mistake.iou is None else f", IoU {mistake.iou:.2f}"
    return {
        "class": f"{found} is {mistake.truth_class}",
        "localisation": f"{found} beside it{overlap}",
        "class and localisation": f"{found} beside {mistake.truth_class}{overlap}",
        "duplicate": f"{found} again",
        "background": f"{found} is nothing",
        "missed": f"{mistake.class_name} missed",
    }[mistake.kind]


def _anchor(pick: Pick) -> str:
    return pick.image_id or hashlib.sha256(pick.path.encode()).hexdigest()[:32]


def build_tiles(
    store: Store,
    picks: Sequence[Pick],
    models: Mapping[str, ModelSpec],
    evaluation: Evaluation | None,
    references: References,
    colours: ClassColours,
    *,
    read_picture: Callable[[str, int], tuple[str | None, str, tuple[int, int]]] = _read_picture,
) -> tuple[Tile, ...]:
    """Read the pictures and the predictions of the chosen images.

    Args:
        store: read only for these images, except that Parquet is filtered part by part.
        picks: the images, in the order shown; an unreadable one becomes a tile that says so.
        models: model_key -> spec, in the report's order.
        evaluation: gives each image its values.
        references: give it its truth.
        colours: of all classes of the report.
        read_picture: (source_uri, bytes at most) -> data URI or None, the reason, original (H, W).
    """
    image_ids = [pick.image_id for pick in picks if pick.image_id]
    rows = {key: read_rows(store, key, image_ids) for key in models if image_ids}
    max_bytes = min(_MAX_PICTURE_BYTES, _PICTURES_BYTES // max(len(picks), 1))
    numbers: dict[str, list[Numbers]] = {}
    for result in evaluation.models if evaluation else ():
        for row in result.per_image:
            found = Numbers(result.model_key, result.kind, row.values)
            numbers.setdefault(row.path, []).append(found)
    mistakes: dict[str, list[tuple[int, Mistake]]] = {}
    place = {key: number for number, key in enumerate(models)}
    for result in evaluation.models if evaluation else ():
        for mistake in result.mistakes:
            mistakes.setdefault(mistake.path, []).append((place[result.model_key], mistake))
    with ThreadPoolExecutor(max_workers=4) as pool:
        pictures = list(pool.map(lambda pick: read_picture(pick.source_uri, max_bytes), picks))
    tiles = []
    for pick, (picture, note, size) in zip(picks, pictures, strict=True):
        layers = [
            build_layer(store, pick.image_id, spec, number, rows[spec.key], colours)
            for number, spec in enumerate(models.values())
            if pick.image_id
        ]
        tiles.append(
            Tile(
                anchor=_anchor(pick),
                path=pick.path,
                image_id=pick.image_id,
                width=size[1],
                height=size[0],
                picture=picture,
                note=note,
                reasons=pick.reasons,
                layers=tuple(layer for layer in layers if layer is not None),
                numbers=tuple(numbers.get(pick.path, ())),
                true_boxes=references.boxes.get(pick.path, ()),
                true_captions=references.captions.get(pick.path, ()),
                marks=_marks(mistakes.get(pick.path, ()), size, colours) if picture else (),
            )
        )
    return tuple(tiles)
