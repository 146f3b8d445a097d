"""A list of images that shows itself: in a notebook, or as a contact sheet in one HTML file."""

import base64
import hashlib
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, overload

import jinja2
import pyarrow as pa
from markupsafe import Markup

from pixelmill.configs.schema import IngestConfig
from pixelmill.tasks.display import printable
from pixelmill.tasks.report.formats import content_digest
from pixelmill.tasks.sources import collection_name, compile_glob, list_images
from pixelmill.tasks.thumbnails import make_thumbnail

__all__ = ["ImageFile", "ImageList", "Sheet"]

# Of a picture in its frame on a screen of two pixels to the point
_DENSITY = 2
_MAX_EDGE = 640
# A sheet stays below 25 MB: base64 adds a third
_SHEET_BYTES = 16_000_000
_PREVIEW = 60
_PAGE = "sheet_page.html.j2"
_FOLDER = Path(__file__).parent / "report"


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image, or what stands in its place.

    Attributes:
        path: relative to the list's source.
        source_uri: what is read.
        reason: why it could not even be listed, or "".
    """

    path: str
    source_uri: str
    reason: str = ""


class Sheet(str):
    """HTML that notebooks show as such."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(self)


@dataclass(frozen=True, slots=True)
class _Tile:
    path: str
    picture: str | None
    ratio: float
    reason: str


@dataclass(frozen=True, slots=True, repr=False)
class ImageList(Sequence[ImageFile]):
    """Images in order, with the steps by which they were chosen; every step makes a new list.

    Example:
        >>> images = ImageList.from_folder("photos").filter("2026/**").sample(500)  # doctest: +SKIP
        >>> images  # the last expression of a notebook's cell shows the pictures  # doctest: +SKIP

    Attributes:
        name: of the source.
        num_listed: images before any step.
        steps: the filters and samples so far, in words.
    """

    name: str
    files: tuple[ImageFile, ...]
    num_listed: int
    steps: tuple[str, ...] = ()

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """All images of a folder or bucket, to any depth, in the order of their paths.

        What is named like an image but cannot be listed (a broken link, no permission) is in the
        list too, and shown as such.

        Raises:
            FileNotFoundError: there is no such folder.
            NotADirectoryError: it is a file.
        """
        source = os.fspath(folder)
        listing = list_images(source, IngestConfig())
        columns = listing.images.select(["path", "source_uri"]).to_pydict()
        found = [ImageFile(*row) for row in zip(*columns.values(), strict=True)]
        found += [
            ImageFile(row["path"], "", f"{row['reason']}: {row['message']}")
            for row in listing.problems.to_pylist()
        ]
        found.sort(key=lambda file: file.path)
        return cls(collection_name(source), tuple(found), len(found))

    @classmethod
    def from_table(cls, name: str, table: pa.Table, *, num_listed: int | None = None) -> Self:
        """Images that a query found.

        Args:
            name: of the list.
            table: with the columns `path` and `source_uri`, in the order wanted.
            num_listed: images that were searched; None: as many as there are rows.

        Raises:
            KeyError: it lacks one of these columns.
        """
        pairs = zip(table["path"].to_pylist(), table["source_uri"].to_pylist(), strict=True)
        files = tuple(ImageFile(path, uri) for path, uri in pairs)
        return cls(name, files, len(files) if num_listed is None else num_listed)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[ImageFile]:
        return iter(self.files)

    @overload
    def __getitem__(self, index: int) -> ImageFile: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> "ImageFile | ImageList":
        if not isinstance(index, slice):
            return self.files[index]
        bounds = ("" if end is None else str(end) for end in (index.start, index.stop))
        step = "" if index.step is None else f":{index.step}"
        return self._step(self.files[index], f"[{':'.join(bounds)}{step}]")

    def __repr__(self) -> str:
        count = f"{len(self):,} image{'' if len(self) == 1 else 's'}"
        if len(self) != self.num_listed:
            count = f"{len(self):,} of {self.num_listed:,} images"
        steps = f"; {', '.join(self.steps)}" if self.steps else ""
        return printable(f"ImageList({self.name!r}: {count}{steps})")

    def _step(self, files: Iterable[ImageFile], said: str) -> Self:
        return replace(self, files=tuple(files), steps=(*self.steps, said))

    def filter(self, keep: str | Callable[[ImageFile], bool]) -> Self:
        """Those that match, in the same order.

        Args:
            keep: a glob as in `ingest.include` of a configuration, or a function of an image.
        """
        if callable(keep):
            name = getattr(keep, "__name__", "<function>")
            return self._step(filter(keep, self.files), f"filter({name})")

        glob = compile_glob(keep)
        return self._step(
            (file for file in self.files if glob.fullmatch(file.path)), f"filter({keep!r})"
        )

    def sample(self, n: int, seed: int = 0) -> Self:
        """`n` of them without replacement, in the same order; all if there are no more.

        Raises:
            ValueError: `n` is negative.
        """
        if n < 0:
            raise ValueError(f"n must not be negative, got {n}")
        if n >= len(self):
            return self
        chosen = sorted(random.Random(seed).sample(range(len(self)), n))
        return self._step((self.files[i] for i in chosen), f"sample({n}, seed={seed})")

    def html(self, *, size: int = 160, sample: int = 200, seed: int = 0) -> Sheet:
        """A contact sheet to show in a notebook; files that cannot be read are shown as such.

        Args:
            size: height of the pictures in pixels.
            sample: images at most; of more, a sample is shown.
            seed: of the sample.

        Raises:
            ValueError: `size` is not in [8, 640].
        """
        return Sheet(self._render("sheet.html.j2", size, sample, seed))

    def page(self, *, size: int = 160, sample: int = 200, seed: int = 0) -> str:
        """A contact sheet as an HTML file of its own, with a search; see `html`."""
        return self._render(_PAGE, size, sample, seed)

    def _repr_html_(self) -> str:
        return self.html(size=96, sample=_PREVIEW)

    def _render(self, template: str, size: int, sample: int, seed: int) -> str:
        if not 8 <= size <= _MAX_EDGE:
            raise ValueError(f"size must be in [8, {_MAX_EDGE}] pixels, got {size}")
        shown = self.sample(sample, seed)
        # several sheets of one notebook must not share their rules
        mark = hashlib.sha256(f"{shown!r}{size}".encode()).hexdigest()[:8]
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_FOLDER),
            autoescape=True,
            finalize=lambda value: printable(value) if type(value) is str else value,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        style = environment.get_template("sheet.css.j2").render(mark=mark, size=size)
        script = (_FOLDER / "sheet.js").read_text()
        if template == _PAGE:
            style += (_FOLDER / "sheet_page.css").read_text()
        return environment.get_template(template).render(
            images=shown,
            title=repr(shown)[len("ImageList(") : -1],
            tiles=_tiles(shown, size),
            mark=mark,
            size=size,
            style=Markup(style),
            script=Markup(script),
            style_digest=content_digest(style),
            script_digest=content_digest(script),
        )


def _tiles(images: ImageList, size: int) -> list[_Tile]:
    """The pictures, each as large as the sheet's bytes allow."""
    budget = _SHEET_BYTES // max(len(images), 1)
    edge = min(_MAX_EDGE, _DENSITY * size)

    def read(file: ImageFile) -> _Tile:
        if file.reason:
            return _Tile(file.path, None, 1.0, file.reason)
        data, picture = make_thumbnail(file.source_uri, edge)
        if data is not None and len(data) > budget:
            data, picture = make_thumbnail(file.source_uri, edge // 2, quality=50)
        if data is None:
            return _Tile(file.path, None, 1.0, picture.reason)
        uri = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
        ratio = min(max(picture.width / picture.height, 0.2), 5.0)
        return _Tile(file.path, uri, ratio, picture.reason)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(read, images))
