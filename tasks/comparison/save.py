"""A comparison as files: JSON of everything, Parquet of classes and of every image."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pixelmill.tasks.comparison.results import Comparison, ImageChange
from pixelmill.tasks.result_files import encode_rows, replace_whole

__all__ = ["ImageTable", "folder_name", "save_comparison"]

_VALUES = (
    "same", "moved", "flipped", "lost", "gained", "pixel agreement", "token F1", "score in A",
    "score in B",
)  # fmt: skip
_IMAGES = pa.schema(
    [
        pa.field("model_a", pa.string(), False),
        pa.field("model_b", pa.string(), False),
        pa.field("image_id", pa.string(), False),
        pa.field("path", pa.string(), False),
        pa.field("change", pa.float64(), False),
        pa.field("reasons", pa.list_(pa.string()), False),
        *(pa.field(name, pa.float64()) for name in _VALUES),
    ]
)
_CLASSES = pa.schema(
    [
        pa.field("model_a", pa.string(), False),
        pa.field("model_b", pa.string(), False),
        pa.field("kind", pa.string(), False),
        pa.field("class", pa.string(), False),
        pa.field("num_a", pa.int64(), False),
        pa.field("num_b", pa.int64(), False),
        pa.field("metric", pa.string(), False),
        pa.field("value", pa.float64(), False),
    ]
)


class ImageTable:
    """`images.parquet`, written chunk by chunk while images are compared: an `ImageSink`.

    Args:
        folder: made if it is not there; an earlier file is replaced when this one is whole.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "images.parquet"
        self._aside = folder / ".images.parquet.new"
        self._writer = pq.ParquetWriter(self._aside, _IMAGES, compression="zstd")

    def __call__(self, model_a: str, model_b: str, changes: Sequence[ImageChange]) -> None:
        """Take some images of one pair of models."""
        columns: dict[str, list[Any]] = {
            "model_a": [model_a] * len(changes),
            "model_b": [model_b] * len(changes),
            **{
                name: [getattr(one, name) for one in changes]
                for name in ("image_id", "path", "change")
            },
            "reasons": [list(one.reasons) for one in changes],
            **{name: [one.values.get(name) for one in changes] for name in _VALUES},
        }
        self._writer.write_table(pa.table(columns, schema=_IMAGES))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()
        if kind is None:
            self._aside.replace(self.path)
        else:
            self._aside.unlink()


def save_comparison(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    """Write compare.json (everything but most images) and classes.parquet (a row per number).

    Args:
        comparison: what to save.
        folder: made if it is not there; earlier files of these names are replaced.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = json.dumps(comparison.to_dict(), ensure_ascii=False, allow_nan=False, indent=1)
    rows = [
        (pair.model_a, pair.model_b, pair.kind, row.class_name, row.num_a, row.num_b, name, value)
        for pair in comparison.pairs
        for row in pair.per_class
        for name, value in row.values.items()
    ]
    paths = folder / "compare.json", folder / "classes.parquet"
    replace_whole(paths[0], document.encode())
    replace_whole(paths[1], encode_rows(_CLASSES, rows))
    return paths


def folder_name(comparison_of: str, a: str, b: str) -> str:
    """A name for the folder of a comparison's files, from what the sides were called."""
    parts = (
        re.sub(r"[^A-Za-z0-9._-]+", "-", name.rstrip("/")).strip("-.")[-60:] for name in (a, b)
    )
    return "--".join((comparison_of, *parts))
