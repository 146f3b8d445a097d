"""What a scoring run is asked to do, and what that means here: folders, models, dates."""

import contextlib
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pixelmill.configs.load import load_config
from pixelmill.configs.schema import EvaluationConfig, RunConfig
from pixelmill.flows.limits import Deadline, FailureBudget, parse_duration, seconds_until
from pixelmill.flows.metrics import RunMetrics, open_metrics
from pixelmill.flows.neighbours import Neighbours
from pixelmill.flows.pool import check_cluster, count_planned_workers
from pixelmill.models.build import resolve_model
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.display import refuse_credentials
from pixelmill.tasks.ingest import KNOWN_COLUMNS, Listing, ingest, join_again
from pixelmill.tasks.plan import Plan, Reprocess, plan_run, save_plan
from pixelmill.tasks.sharing import OpenRun
from pixelmill.tasks.sources import collection_name
from pixelmill.tasks.store import RunRecord, Store, publish

__all__ = [
    "DEFAULT_STORE",
    "Job",
    "ScoreParams",
    "default_collection",
    "find_source",
    "find_truth",
    "last_run",
    "plan_job",
    "prepare_job",
    "preview_plan",
    "read_known",
    "resolve_models",
    "start_run",
    "truth_base",
    "watched",
]

DEFAULT_STORE = "pixelmill-store"

# A folder with such a name says nothing of what is in it; its parent does.
GENERIC_NAMES = {
    "data", "frames", "image", "images", "img", "imgs", "jpegimages", "jpg", "photos", "pictures",
    "png", "test", "train", "val",
}  # fmt: skip


class ScoreParams(BaseModel):
    """Parameters of the flow `score`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str | None = Field(
        default=None, description="folder or URL of the images; left out: the config's `images`"
    )
    store: str = Field(
        default=DEFAULT_STORE, description="where predictions go: a folder, s3://, gs:// or az://"
    )
    config: RunConfig | str = Field(
        default="coco", description="a preset's name, a YAML file, or the whole configuration"
    )
    collection: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="name of the images in the store; left out: from the folder's name, which "
        "another folder's images must not have there",
    )
    date: str | None = Field(
        default=None,
        pattern=r"^\d{4}-\d{2}-\d{2}$",
        description="logical date of the batch, YYYY-MM-DD; left out: today",
    )
    since: str | None = Field(
        default=None,
        pattern=r"^\d{4}-\d{2}-\d{2}$",
        description="only images whose paths have this date or a later one, or none; left out: all",
    )
    reprocess: Reprocess = Field(
        default="missing",
        description="missing: what has no prediction; failed: also what failed for good; all: "
        "everything is scored again, and what stands already is kept",
    )
    until: str | None = Field(
        default=None, description="local time of day, HH:MM, by which the run has ended"
    )
    budget: str | None = Field(
        default=None, description="time that the run may take, such as 45m or 2h"
    )
    evaluate: bool = Field(default=True, description="compare with truth, where there is any")
    report: bool = Field(default=True, description="write the HTML report")

    @property
    def title(self) -> str:
        """What is scored, for people: the configuration's name where that says which images."""
        config = self.config if isinstance(self.config, str) else self.config.name
        return self.collection or self.source or Path(config).stem

    @field_validator("until")
    @classmethod
    def _is_time_of_day(cls, value: str | None) -> str | None:
        if value is not None:
            seconds_until(value)
        return value

    @field_validator("budget")
    @classmethod
    def _is_duration(cls, value: str | None) -> str | None:
        if value is not None:
            parse_duration(value)
        return value


@dataclass(frozen=True, slots=True)
class Job:
    """A scoring run with everything found that its parameters left out.

    Attributes:
        source: absolute, or a URL.
        truth: what the config names and is there; None if there is nothing.
        truth_base: where relative truth paths start.
        deadline: when it has to end.
        max_failures: more than that, and it is broken.
        gives_way: it starts no shard while a nightly run is at work on the store.
        metrics: figures of the run, where somebody watches; see `watched`.
    """

    config: RunConfig
    specs: tuple[ModelSpec, ...]
    source: str
    collection: str
    date: str
    reprocess: Reprocess
    truth: EvaluationConfig | None
    truth_base: Path
    num_workers: int
    deadline: Deadline | None
    max_failures: FailureBudget | None
    gives_way: bool = False
    metrics: RunMetrics | None = None


def prepare_job(params: ScoreParams) -> Job:
    """Find everything that the parameters leave out.

    Raises:
        ConfigError: the configuration has faults.
        ValueError: no images are named, a model is not complete, or the folder's name is in the
            store already, for the images of another folder, or the cluster cannot be had.
        OSError: weights are neither here nor to be had, or truth is there without the subset that
            is to be compared.
    """
    config = params.config
    config = config if isinstance(config, RunConfig) else load_config(config)
    source = params.source or config.images
    if source is None:
        raise ValueError(f"config {config.name!r} names no images; name a folder to score")
    for url in (source, config.images or ""):  # both are kept in the run's record
        refuse_credentials(url)
    source = find_source(source)
    check_cluster(config.compute.cluster)
    if params.collection is None:
        _refuse_namesake(params.store, default_collection(source), source)
    base = truth_base(source)
    budget = config.compute.max_failures
    return Job(
        config=config,
        specs=resolve_models(config),
        source=source,
        collection=params.collection or default_collection(source),
        date=params.date or datetime.now(UTC).date().isoformat(),
        reprocess=params.reprocess,
        truth=find_truth(config.evaluation, base) if params.evaluate else None,
        truth_base=base,
        num_workers=count_planned_workers(config.compute),
        deadline=_deadline(params),
        max_failures=None if budget is None else FailureBudget.parse(budget),
    )


@contextlib.contextmanager
def watched(job: Job) -> Iterator[Job]:
    """The job with figures that Prometheus reads meanwhile, if PIXELMILL_METRICS names a place."""
    keys = [spec.key for spec in job.specs]
    with open_metrics(job.collection, keys, job.config.compute.cost_per_hour) as metrics:
        yield replace(job, metrics=metrics)


def _deadline(params: ScoreParams) -> Deadline | None:
    """The earlier one of the two that may be given."""
    seconds = []
    if params.until is not None:
        seconds.append(seconds_until(params.until))
    if params.budget is not None:
        seconds.append(parse_duration(params.budget))
    return Deadline(min(seconds)) if seconds else None


def _refuse_namesake(root: str, collection: str, source: str) -> None:
    """Two folders of the same name would take each other's images for changed or gone ones."""
    try:
        store = Store(root)
    except FileNotFoundError:
        return
    known = _known_run(store, collection)
    if known is None or _normal_source(known.source) == _normal_source(source):
        return
    raise ValueError(
        f"collection {collection!r} of store {store.root} has the images of {known.source}, not of "
        f"{source}; give these a name of their own by --collection NAME, or say --collection "
        f"{collection} if it is the same folder in a new place"
    )


def _known_run(store: Store, collection: str) -> RunRecord | None:
    """A run of a collection, found without reading the records of all runs."""
    parts = store.parts("catalog", collection=collection)
    if parts:
        with store.backend.open(parts[-1].path) as file:
            newest = next(pq.ParquetFile(file).iter_batches(1, columns=["run_id"]))
        return store.run(newest["run_id"][0].as_py())
    # Nothing of it is published yet
    return next((run for run in store.open_runs() if run.collection == collection), None)


def _normal_source(source: str) -> str:
    """One spelling of a folder or URL."""
    scheme, separator, rest = source.rstrip("/").partition("://")
    if not separator or scheme.lower() == "file":
        return str(Path(unquote(rest) if separator else source).resolve())
    return f"{scheme.lower()}://{rest}"


def last_run(store: Store, collection: str | None) -> RunRecord | None:
    """The newest run, or the newest of a collection; None if there is none."""
    records = (store.run(run_id) for run_id in reversed(store.runs()))
    return next((each for each in records if collection in (None, each.collection)), None)


def find_source(source: str) -> str:
    """A folder by its whole path; a URL as it is.

    Raises:
        OSError: there is no such folder.
    """
    if "://" in source:
        return source
    folder = Path(source).expanduser().resolve()
    if not folder.exists():
        raise FileNotFoundError(f"no folder {str(folder)!r}")
    if not folder.is_dir():
        raise NotADirectoryError(f"expected a folder of images, got the file {str(folder)!r}")
    return str(folder)


def resolve_models(config: RunConfig) -> tuple[ModelSpec, ...]:
    """The complete description of each model of a config; fetches weights where it has to."""
    return tuple(resolve_model(model, Path.cwd()) for model in config.models)


def find_truth(config: EvaluationConfig, base: Path) -> EvaluationConfig | None:
    """The truth of a config that is there.

    A preset's truth belongs to its own images; over another folder there is none.

    Raises:
        FileNotFoundError: there is truth, but not the list of its images that are to be compared.
    """
    kinds = ("instances", "semantic", "captions", "labels")
    places = {kind: getattr(config, kind) for kind in kinds}
    there = {kind: place for kind, place in places.items() if place and (base / place).exists()}
    if not there:
        return None
    if config.subset is not None and not (base / config.subset).exists():
        raise FileNotFoundError(
            f"no {base / config.subset}, which names the images to compare (evaluation.subset): "
            "`pixelmill train` writes it, --subset FILE names another"
        )
    return config.model_copy(update=dict.fromkeys(kinds) | there)


def truth_base(source: str) -> Path:
    """Where relative truth paths start: beside the images, where those are local."""
    return Path.cwd() if "://" in source else Path(source).parent


def default_collection(source: str) -> str:
    """A name for the images of a folder: its own, with the parent's if that says nothing."""
    name = collection_name(source)
    if name.lower() not in GENERIC_NAMES:
        return name
    parent = source.rstrip("/").rpartition("/")[0]
    return f"{collection_name(parent)}-{name}" if re.search(r"[^/:]", parent) else name


def read_known(store: Store, collection: str) -> pa.Table:
    """The catalog of a collection, as `ingest` wants it."""
    return store.table("catalog", columns=KNOWN_COLUMNS, filters=[("collection", "=", collection)])


def preview_plan(root: str, job: Job) -> Plan:
    """The plan of a job without writing anything; against an empty store if there is none."""
    try:
        store = Store(root)
    except FileNotFoundError:
        store = Store(f"memory://preview-{uuid.uuid4().hex}", create=True)
    publish(store)
    listing = ingest(job.source, job.config.ingest, read_known(store, job.collection))
    return plan_job(store, job, listing, Neighbours(store).open_runs())


def plan_job(store: Store, job: Job, listing: Listing, open_runs: Sequence[OpenRun] = ()) -> Plan:
    """What a job's models lack of a listing, and no other run has begun."""
    return plan_run(
        store,
        listing,
        job.specs,
        job.config,
        collection=job.collection,
        source=job.source,
        date=job.date,
        reprocess=job.reprocess,
        num_workers=job.num_workers,
        open_runs=open_runs,
    )


def start_run(neighbours: Neighbours, job: Job, listing: Listing, *, is_part: bool = False) -> Plan:
    """Plan a job and store the plan, while nobody else plans.

    What is committed is published first, so that nothing is planned twice: neither what a killed
    run had finished, nor what others have done since the listing. Dead runs of which nothing is
    worth finishing are ended.

    Args:
        neighbours: other runs on the store.
        job: what is asked for.
        listing: of its source.
        is_part: the listing is a part of the collection; dead runs of other parts are left to them.

    Returns:
        The plan; its record is that of the run, if there is anything to score.
    """
    store = neighbours.store
    with neighbours.planning():
        publish(store)
        listing = join_again(listing, read_known(store, job.collection))
        open_runs = neighbours.open_runs()
        plan = plan_job(store, job, listing, open_runs)
        if plan.record is not None:
            plan = replace(plan, record=save_plan(store, plan, neighbours.session))
        adopted = {shard.run_id for shard in plan.adopted}
        records = [run.record for run in open_runs if run.is_dead]
        neighbours.end_dead_runs(
            record
            for record in records
            if record.collection == job.collection
            and record.run_id not in adopted
            and not (is_part and _is_beyond(store, record, listing))
        )
    return plan


def _is_beyond(store: Store, record: RunRecord, part: Listing) -> bool:
    """Whether a run has inputs that a part of its collection has not."""
    planned = store.plan_rows(record.run_id)["path"]
    return not pc.all(pc.is_in(planned, value_set=part.images["path"])).as_py()  # pyright: ignore[reportAttributeAccessIssue]
