"""Questions to a store's tables, answered by DuckDB over the published parts.

Parts are named one by one, as the store's log has them, so that a run that publishes meanwhile is
seen whole or not at all. What a reader of the page types is always a bound parameter, never SQL.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import pyarrow as pa

from pixelmill.tasks.store import TABLES, Store

if TYPE_CHECKING:
    import duckdb

__all__ = ["Filter", "Index", "Order", "Page", "State"]

Order = Literal["path", "score", "lowest score", "boxes", "newest", "random"]
State = Literal["any", "found", "empty", "failed", "flagged"]
T = TypeVar("T")

_TABLES = ("images", "detections", "labels", "captions", "failures")
_KEPT_RESULTS = 12
# A part may be replaced between its listing and its reading
_TRIES = 4
_ORDERS: dict[Order, str] = {
    "path": "path, image_id",
    "score": "score DESC NULLS LAST, image_id",
    "lowest score": "score ASC NULLS LAST, image_id",
    "boxes": "boxes DESC, image_id",
    "newest": "scored_at DESC, image_id",
    "random": "image_id",  # a digest
}


@dataclass(frozen=True, slots=True)
class Filter:
    """What to look for; everything given must hold.

    Attributes:
        text: part of the path, or of a caption; upper and lower case are the same.
        class_name: of a box or of a label of the whole image.
        low: least score of that class, or of any box; high: greatest.
        min_boxes: of the class, or of any.
    """

    collection: str = ""
    model: str = ""
    class_name: str = ""
    low: float = 0.0
    high: float = 1.0
    min_boxes: int = 0
    text: str = ""
    state: State = "any"
    order: Order = "path"

    def __post_init__(self) -> None:
        if self.state not in get_args(State):
            raise ValueError(f"state must be one of {get_args(State)}, got {self.state!r}")
        if self.order not in get_args(Order):
            raise ValueError(f"order must be one of {get_args(Order)}, got {self.order!r}")
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"scores must be 0 <= low <= high <= 1, got {self.low}, {self.high}")

    @property
    def by_score(self) -> bool:
        """Whether boxes or labels decide."""
        return bool(self.class_name or self.low > 0 or self.high < 1 or self.min_boxes)


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of the images found.

    Attributes:
        total: images found in all.
        rows: image_id (None where the bytes were never read), path, collection, reason (of a
            failure, else ""), score (the best that matched, or None), boxes, source_uri.
    """

    total: int
    rows: list[dict[str, Any]]


class Index:
    """The tables of a store, open for questions from several threads.

    Args:
        store: may be written to meanwhile; see `refresh`.
        memory: DuckDB's limit; what does not fit goes to temporary files.

    Raises:
        ImportError: DuckDB is not installed.
    """

    def __init__(self, store: Store, *, memory: str = "2GB") -> None:
        try:
            import duckdb
        except ImportError as err:
            raise ImportError("DuckDB is not installed: pip install 'pixelmill[browse]'") from err
        self.store = store
        self.version = 0
        self._errors = (duckdb.IOException, duckdb.CatalogException)
        self._db: duckdb.DuckDBPyConnection = duckdb.connect(
            config={"memory_limit": memory, "autoinstall_known_extensions": False}
        )
        self._lock = threading.RLock()
        self._parts: tuple[tuple[str, str], ...] | None = None
        self._found: OrderedDict[Filter, tuple[int, str, int]] = OrderedDict()
        self._numbers = 0
        self.refresh()

    def close(self) -> None:
        """Let go of the files."""
        self._db.close()

    def refresh(self) -> bool:
        """See what was published since; true if anything was."""
        with self._lock:
            parts = self.store.parts_at_once(_TABLES)
            names = tuple((name, part.path) for name in _TABLES for part in parts[name])
            if names == self._parts:
                return False
            for name in _TABLES:
                self._define(name, parts[name])
            self._parts = names
            self.version += 1
            for _, table, _ in self._found.values():
                self._db.execute(f"DROP TABLE IF EXISTS {table}")
            self._found.clear()
            return True

    def _define(self, name: str, parts: Sequence[Any]) -> None:
        """A view over a table's parts, with the partition keys of their paths."""
        table = TABLES[name]
        is_remote = "://" in self.store.root
        if is_remote or not parts:
            # DuckDB would fetch an extension to read remote parts; the store's client needs none
            keys = [pa.field(key, pa.string()) for key in table.partitions]
            empty = pa.schema([*table.schema, *keys]).empty_table()
            self._db.register("given", self.store.table(name) if is_remote else empty)
            self._db.execute(f"CREATE OR REPLACE TABLE {name}_rows AS SELECT * FROM given")
            self._db.unregister("given")
            self._db.execute(f"CREATE OR REPLACE VIEW {name} AS SELECT * FROM {name}_rows")
            return
        groups: dict[tuple[str, ...], list[str]] = {}
        for part in parts:
            values = tuple(part.partitions[key] for key in table.partitions if key != "date")
            groups.setdefault(values, []).append(f"{self.store.root}/{part.path}")
        selects = []
        for values, files in groups.items():
            keys = [key for key in table.partitions if key != "date"]
            columns = "".join(
                f", {_quote(value)} AS {key}" for key, value in zip(keys, values, strict=True)
            )
            listed = ", ".join(_quote(_escape_glob(file)) for file in files)
            selects.append(
                f"SELECT *{columns} FROM read_parquet([{listed}], hive_partitioning = false)"
            )
        self._db.execute(f"CREATE OR REPLACE VIEW {name} AS {' UNION ALL '.join(selects)}")

    def _ask(self, question: Callable[["duckdb.DuckDBPyConnection"], T]) -> T:
        """An answer, from newly listed parts where the known ones are gone.

        A refresh meanwhile also drops the tables of results, which are then made again.
        """
        for _ in range(_TRIES - 1):
            cursor = self._db.cursor()
            try:
                return question(cursor)
            except self._errors:
                self.refresh()
            finally:
                cursor.close()
        with self._db.cursor() as cursor:
            return question(cursor)

    def facets(self) -> dict[str, Any]:
        """What can be filtered by: models, collections, classes by how often they were found."""

        def question(db: "duckdb.DuckDBPyConnection") -> dict[str, Any]:
            models = db.execute(
                "SELECT model, count(*) FROM images GROUP BY model ORDER BY model"
            ).fetchall()
            collections = db.execute(
                "SELECT collection, count(DISTINCT image_id) FROM images GROUP BY ALL ORDER BY ALL"
            ).fetchall()
            classes = db.execute(
                "SELECT class_name, count(*) AS n FROM (SELECT class_name FROM detections "
                "UNION ALL SELECT class_name FROM labels WHERE rank = 0) "
                "GROUP BY class_name ORDER BY n DESC, class_name LIMIT 2000"
            ).fetchall()
            return {"models": models, "collections": collections, "classes": classes}

        return self._ask(question) | {"version": self.version}

    def page(self, wanted: Filter, offset: int, limit: int) -> Page:
        """A stretch of the images that match.

        Args:
            wanted: the filter; its result is kept, so that turning pages asks nothing again.
            offset: of the first row.
            limit: rows at most.
        """

        def question(db: "duckdb.DuckDBPyConnection") -> Page:
            total, table = self._result(db, wanted)
            cursor = db.execute(
                f"SELECT * EXCLUDE (scored_at) FROM {table} WHERE rowid >= ? AND rowid < ?",
                [offset, offset + limit],
            )
            names = [column[0] for column in cursor.description or ()]
            return Page(total, [dict(zip(names, row, strict=True)) for row in cursor.fetchall()])

        return self._ask(question)

    def table(self, wanted: Filter) -> pa.Table:
        """All images that match, with the columns of `Page.rows`."""

        def question(db: "duckdb.DuckDBPyConnection") -> pa.Table:
            _, table = self._result(db, wanted)
            with db.cursor() as fresh:
                return fresh.sql(f"SELECT * FROM {table} ORDER BY rowid").to_arrow_table()

        return self._ask(question)

    def _result(self, db: "duckdb.DuckDBPyConnection", wanted: Filter) -> tuple[int, str]:
        """Number of rows and name of the table in which a filter's result stands."""
        with self._lock:
            kept = self._found.get(wanted)
            if kept is not None and kept[0] == self.version:
                self._found.move_to_end(wanted)
                return kept[2], kept[1]
            self._numbers += 1
            table, version = f"found_{self._numbers}", self.version
            sql, values = (
                _failures_query(wanted) if wanted.state == "failed" else _images_query(wanted)
            )
            db.execute(f"CREATE TABLE {table} AS {sql} ORDER BY {_ORDERS[wanted.order]}", values)
            ((total,),) = db.execute(f"SELECT count(*) FROM {table}").fetchall()
            self._found[wanted] = (version, table, total)
            while len(self._found) > _KEPT_RESULTS:
                _, (_, oldest, _) = self._found.popitem(last=False)
                db.execute(f"DROP TABLE IF EXISTS {oldest}")
            return total, table

    def rows(self, image_id: str) -> dict[str, list[dict[str, Any]]]:
        """All published rows of an image: images, detections, captions, labels, failures."""

        def question(db: "duckdb.DuckDBPyConnection") -> dict[str, list[dict[str, Any]]]:
            found = {}
            for name in _TABLES:
                cursor = db.execute(f"SELECT * FROM {name} WHERE image_id = ?", [image_id])
                names = [column[0] for column in cursor.description or ()]
                found[name] = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
            return found

        return self._ask(question)

    def source_uri(self, image_id: str) -> str | None:
        """Where an image's bytes are; None if it is not known."""

        def question(db: "duckdb.DuckDBPyConnection") -> str | None:
            for name in ("images", "failures"):
                found = db.execute(
                    f"SELECT source_uri FROM {name} WHERE image_id = ? LIMIT 1", [image_id]
                ).fetchall()
                if found:
                    return str(found[0][0])
            return None

        return self._ask(question)


@dataclass(slots=True)
class _Where:
    """Conditions that must all hold, and the values of their placeholders."""

    conditions: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def add(self, condition: str, *values: Any) -> None:
        self.conditions.append(condition)
        self.values += values

    def __str__(self) -> str:
        return f"WHERE {' AND '.join(self.conditions)}" if self.conditions else ""


def _images_query(wanted: Filter) -> tuple[str, list[Any]]:
    """One row per image that some model scored."""
    hits, hit_values = _hits(wanted) if wanted.by_score else ("", [])
    where = _Where()
    if wanted.collection:
        where.add("images.collection = ?", wanted.collection)
    if wanted.model:
        where.add("images.model = ?", wanted.model)
    if wanted.state == "found":
        where.add("images.n_detections + images.n_captions > 0")
    if wanted.state == "empty":  # label maps and labels of whole images are never empty
        where.add("images.n_detections + images.n_captions = 0")
        where.add("images.semantic_array IS NULL")
        where.add(
            "NOT EXISTS (SELECT 1 FROM labels WHERE labels.image_id = images.image_id "
            "AND labels.model = images.model)"
        )
    if wanted.state == "flagged":
        where.add("images.status <> 'ok'")
    if wanted.text:
        where.add(
            "(contains(lower(images.path), lower(?)) OR images.image_id IN "
            "(SELECT image_id FROM captions WHERE contains(lower(text), lower(?))))",
            wanted.text,
            wanted.text,
        )
    score = "max(hit.score)" if hits else "NULL::FLOAT"
    boxes = "max(hit.hits)" if hits else "max(images.n_detections)"
    sql = (
        "SELECT images.image_id, min(images.path) AS path, min(images.collection) AS collection, "
        f"'' AS reason, {score} AS score, {boxes} AS boxes, "
        "min(images.source_uri) AS source_uri, max(images.scored_at) AS scored_at "
        f"FROM images {hits} {where} GROUP BY images.image_id"
    )
    return sql, [*hit_values, *where.values]


def _hits(wanted: Filter) -> tuple[str, list[Any]]:
    """A join with the boxes and labels that match: `hit`, one row per image and model."""
    where = _Where()
    where.add("score >= ?", wanted.low)
    where.add("score <= ?", wanted.high)
    if wanted.class_name:
        where.add("class_name = ?", wanted.class_name)
    if wanted.model:
        where.add("model = ?", wanted.model)
    sql = (
        "JOIN (SELECT image_id, model, max(score) AS score, count(*) AS hits FROM ("
        f"SELECT image_id, model, score FROM detections {where} UNION ALL "
        f"SELECT image_id, model, score FROM labels {where}"
        ") GROUP BY image_id, model HAVING count(*) >= ?) AS hit "
        "ON hit.image_id = images.image_id AND hit.model = images.model"
    )
    return sql, [*where.values, *where.values, max(wanted.min_boxes, 1)]


def _failures_query(wanted: Filter) -> tuple[str, list[Any]]:
    """The newest failure of each path of which no model has the image."""
    where = _Where()
    scored = "SELECT 1 FROM images WHERE images.image_id = failures.image_id"
    if wanted.model:
        where.add(f"NOT EXISTS ({scored} AND images.model = ?)", wanted.model)
        where.add("(model_key IS NULL OR model_key = ?)", wanted.model)
    else:
        where.add(f"NOT EXISTS ({scored})")
    if wanted.collection:
        where.add("collection = ?", wanted.collection)
    if wanted.text:
        where.add(
            "(contains(lower(path), lower(?)) OR contains(lower(reason), lower(?)))",
            wanted.text,
            wanted.text,
        )
    sql = (
        "SELECT max_by(image_id, failed_at) AS image_id, path, collection, "
        "max_by(stage || ': ' || reason, failed_at) AS reason, NULL::FLOAT AS score, 0 AS boxes, "
        "max_by(source_uri, failed_at) AS source_uri, max(failed_at) AS scored_at "
        f"FROM failures {where} GROUP BY path, collection"
    )
    return sql, where.values


def _quote(text: str) -> str:
    """A string literal; partition keys and paths of the store are not typed by a reader."""
    return "'" + text.replace("'", "''") + "'"


def _escape_glob(path: str) -> str:
    """A path whose characters DuckDB does not take for a pattern."""
    return re.sub(r"([*?\[])", r"[\1]", path)
