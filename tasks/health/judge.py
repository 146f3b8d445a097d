"""Tonight against a trailing baseline: what is unusual, and whether that is an alarm."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any, Literal

from pixelmill.configs.schema import HealthConfig
from pixelmill.models.spec import ModelSpec
from pixelmill.tasks.health.drift import Histogram, Shift, compare, pool
from pixelmill.tasks.health.nights import (
    Night,
    NightRuns,
    Quantity,
    dates_of,
    read_night,
    read_runs,
)
from pixelmill.tasks.stage import stage
from pixelmill.tasks.store import RunRecord, Store

__all__ = ["Health", "HealthFinding", "ModelHealth", "Reading", "check_health", "health_task"]

Level = Literal["alarm", "warning", "note"]
_LEVELS: tuple[Level, ...] = ("alarm", "warning", "note")

# Of all comparisons of a night together, the share of healthy nights with a false finding
_FALSE_ALARMS = 0.01
# A class is gone if so many of its boxes were to be expected: without a change, e to the -10
_EXPECTED = 10.0
_OWN_VERSION_NIGHTS = 3


@dataclass(frozen=True, slots=True)
class HealthFinding:
    """Something unusual.

    Attributes:
        what: short name of the quantity.
        class_name: None where it is no matter of one class.
        value: of tonight; limit: which it should keep.
        rank: the greater, the more it tells; findings are in this order, alarms first.
        text: as a sentence.
    """

    level: Level
    model_key: str
    what: str
    class_name: str | None
    value: float
    limit: float
    rank: float
    text: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A quantity of tonight beside its baseline.

    Attributes:
        shift: PSI and what adds most to it.
        usual: median PSI of the baseline's nights, each against the others; None of fewer than 3.
    """

    quantity: Quantity
    shift: Shift
    usual: float | None
    before: Histogram
    now: Histogram


@dataclass(frozen=True, slots=True)
class ModelHealth:
    """One model's night.

    Attributes:
        night: the one that is judged.
        baseline: earlier ones, oldest first.
        readings: the greatest PSI first.
        findings: alarms first.
    """

    model_key: str
    name: str
    task: str
    night: Night
    baseline: tuple[Night, ...]
    readings: tuple[Reading, ...]
    findings: tuple[HealthFinding, ...]

    @property
    def means(self) -> tuple[str, ...]:
        """Names of the numbers that every night has one of."""
        return tuple(
            dict.fromkeys(name for each in (*self.baseline, self.night) for name in each.means)
        )


@dataclass(frozen=True, slots=True)
class Health:
    """A collection's night.

    Attributes:
        level: of the worst finding; None: nothing unusual.
        findings: of all models, the first is the one to look at.
    """

    collection: str
    date: str
    created_at: str
    level: Level | None
    findings: tuple[HealthFinding, ...]
    models: tuple[ModelHealth, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: findings, and each model's counts, readings and series; no histograms."""
        return {
            "collection": self.collection,
            "date": self.date,
            "created_at": self.created_at,
            "level": self.level,
            "findings": [asdict(one) for one in self.findings],
            "models": [
                {
                    "model": one.model_key,
                    "task": one.task,
                    "nights": [
                        {
                            "date": night.date,
                            "model": night.model_key,
                            "images": night.num_images,
                            "failed": night.num_failed,
                            "failures": dict(night.failures),
                            "missing": night.num_missing,
                            **night.means,
                        }
                        for night in (*one.baseline, one.night)
                    ],
                    "readings": [
                        {
                            "quantity": reading.quantity.name,
                            "class": reading.quantity.class_name,
                            "psi": reading.shift.psi,
                            "chance": reading.shift.chance,
                            "usual": reading.usual,
                            "bin": reading.shift.label,
                            "share_before": reading.shift.share_before,
                            "share_now": reading.shift.share_now,
                        }
                        for reading in one.readings
                    ],
                }
                for one in self.models
            ],
        }


def check_health(
    store: Store,
    config: HealthConfig,
    *,
    collection: str | None = None,
    date: str | None = None,
) -> Health:
    """Compare a night with the ones before it, model by model.

    A night is a logical date: all runs of a collection that have it. Versions of a model (one name)
    share a baseline while the newest has fewer than three nights of its own.

    Args:
        store: published predictions, receipts and ends of runs are read.
        config: thresholds, and how many nights back.
        collection: None: that of the newest run.
        date: the night; None: that of the collection's newest run.

    Raises:
        ValueError: there is no such collection or night.
    """
    runs = _runs_of(store, collection)
    collection = runs[-1].collection
    chosen = date or runs[-1].date
    tonight = [run for run in runs if run.date == chosen]
    if not tonight:
        known = sorted({run.date for run in runs})
        raise ValueError(f"no run of {collection} has the date {chosen}; newest: {known[-5:]}")
    specs = {spec.key: spec for run in runs for spec in run.models}
    current = {spec.key: spec for run in tonight for spec in run.models}
    dates = dates_of(store, specs)
    # receipts are many, and the same for all models
    runs_on = functools.cache(lambda day: read_runs(store, day, runs))
    models = tuple(
        _judge_model(store, config, spec, chosen, collection, runs_on, specs, dates)
        for spec in current.values()
    )
    findings = _ordered([finding for model in models for finding in model.findings])
    level = findings[0].level if findings else None
    return Health(
        collection=collection,
        date=chosen,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        level=level,
        findings=findings,
        models=models,
    )


def _runs_of(store: Store, collection: str | None) -> list[RunRecord]:
    """A collection's runs, oldest first."""
    records = [store.run(run_id) for run_id in store.runs()]
    if not records:
        raise ValueError(f"store {store.root} has no run; score a folder into it first")
    wanted = collection or records[-1].collection
    found = [record for record in records if record.collection == wanted]
    if not found:
        known = ", ".join(sorted({record.collection for record in records}))
        raise ValueError(f"store {store.root} has no run of {wanted!r}; it has: {known}")
    return found


def _ordered(findings: Sequence[HealthFinding]) -> tuple[HealthFinding, ...]:
    return tuple(sorted(findings, key=lambda one: (_LEVELS.index(one.level), -one.rank, one.text)))


def _judge_model(
    store: Store,
    config: HealthConfig,
    spec: ModelSpec,
    date: str,
    collection: str,
    runs_on: Callable[[str], NightRuns],
    specs: dict[str, ModelSpec],
    dates: dict[str, list[str]],
) -> ModelHealth:
    def night(key: str, day: str) -> Night:
        return read_night(store, specs[key], collection, runs_on(day))

    now = night(spec.key, date)
    baseline = [
        found
        for key, day in _baseline_of(spec, date, specs, dates, config.nights)
        if (found := night(key, day)).num_images + found.num_failed
    ]
    findings = [*_absolute(spec, now, baseline, config)]
    readings: list[Reading] = []
    enough = sum(each.num_images for each in baseline)
    if baseline and now.num_sampled >= config.min_images and enough >= config.min_images:
        readings = _readings(now, baseline, config)
        findings += _drifts(spec.key, readings, config)
        findings += [*_gone(spec.key, now, baseline), *_one_sentence(spec.key, now, baseline)]
    else:
        text = f"{spec.key}: not compared with earlier nights: "
        text += (
            f"{now.num_sampled:,} images tonight and {enough:,} before, {config.min_images} of "
            "each are needed"
            if baseline
            else "there are none"
        )
        findings.append(HealthFinding("note", spec.key, "baseline", None, enough, 0, 0, text))
    if any(each.model_key != spec.key for each in baseline):
        keys = sorted({each.model_key for each in baseline} - {spec.key})
        text = f"{spec.key} is compared with nights of other versions: {', '.join(keys)}"
        findings.append(HealthFinding("note", spec.key, "version", None, 0, 0, 0, text))
    return ModelHealth(
        model_key=spec.key,
        name=spec.name,
        task=spec.task,
        night=now,
        baseline=tuple(baseline),
        readings=tuple(sorted(readings, key=lambda one: -one.shift.psi)),
        findings=_ordered(findings),
    )


def _baseline_of(
    spec: ModelSpec,
    date: str,
    specs: dict[str, ModelSpec],
    dates: dict[str, list[str]],
    num_nights: int,
) -> list[tuple[str, str]]:
    """(model key, date) of the nights to compare with, oldest first."""
    own = [(spec.key, day) for day in dates[spec.key] if day < date]
    if len(own) >= _OWN_VERSION_NIGHTS:
        return own[-num_nights:]
    versions = [
        key for key, other in specs.items() if (other.name, other.task) == (spec.name, spec.task)
    ]
    by_day: dict[str, str] = {}
    for key in versions:
        for day in dates[key]:
            if day < date and (day not in by_day or key == spec.key):
                by_day[day] = key
    return [(by_day[day], day) for day in sorted(by_day)][-num_nights:]


def _absolute(
    spec: ModelSpec, now: Night, baseline: Sequence[Night], config: HealthConfig
) -> list[HealthFinding]:
    """Rules that need no baseline."""
    found: list[HealthFinding] = []

    def add(level: Level, what: str, value: float, limit: float, rank: float, text: str) -> None:
        text = f"{spec.key}: {text}"
        found.append(HealthFinding(level, spec.key, what, None, value, limit, rank, text))

    if now.num_missing:
        text = f"{now.num_missing:,} images are neither scored nor failed: `pixelmill audit`"
        add("alarm", "missing", now.num_missing, 0, 100, text)
    tried = now.num_images + now.num_failed
    usual = median([each.num_images for each in baseline]) if baseline else 0
    if not now.num_images and (now.num_failed or usual):
        add("alarm", "images", 0, usual, 100, f"nothing was scored, {usual:,.0f} images as a rule")
    elif len(baseline) >= 3 and now.num_images < 0.5 * min(each.num_images for each in baseline):
        text = f"{now.num_images:,} images, less than half of any of {len(baseline)} nights before"
        add("warning", "images", now.num_images, usual, 1, text)
    share = now.failed_share
    reason = next(iter(now.failures), "")
    if share >= config.failures_warn and now.num_failed > 1:
        is_alarm = share >= config.failures_alarm
        limit = config.failures_alarm if is_alarm else config.failures_warn
        text = f"{now.num_failed:,} of {tried:,} images failed ({share:.1%}), most by {reason}"
        add("alarm" if is_alarm else "warning", "failures", share, limit, share / limit, text)
    new = [name for name in now.failures if all(name not in each.failures for each in baseline)]
    if new and baseline:
        text = f"failures of a kind that was not there before: {', '.join(new[:5])}"
        add("note", "failures", sum(now.failures[name] for name in new), 0, 0, text)
    return found


def _readings(now: Night, baseline: Sequence[Night], config: HealthConfig) -> list[Reading]:
    alpha = _FALSE_ALARMS / max(1, len(now.histograms))
    readings = []
    for quantity, histogram in now.histograms.items():
        nights = [each.histograms[quantity] for each in baseline if quantity in each.histograms]
        before = pool(nights) if nights else None
        enough = max(10, config.min_images // 5)
        if before is None or min(before.num_images, histogram.num_images) < enough:
            continue
        shift = compare(before, histogram, alpha=alpha)
        readings.append(Reading(quantity, shift, _usual(nights), before, histogram))
    return readings


def _usual(nights: Sequence[Histogram]) -> float | None:
    """Median PSI of each night against the others."""
    if len(nights) < 3:
        return None
    return median(
        compare(pool([*nights[:k], *nights[k + 1 :]]), night, alpha=0.5).psi
        for k, night in enumerate(nights)
    )


def _drifts(
    model_key: str, readings: Sequence[Reading], config: HealthConfig
) -> list[HealthFinding]:
    """Quantities beyond the thresholds, beyond chance, and beyond what nights vary by anyway."""
    whole = {r.quantity.name: r.shift.psi for r in readings if r.quantity.class_name is None}
    found = []
    for reading in readings:
        shift, quantity = reading.shift, reading.quantity
        floor = max(shift.chance, 2 * (reading.usual or 0.0))
        if shift.psi < max(config.psi_warn, floor):
            continue
        is_alarm = shift.psi >= max(config.psi_alarm, floor)
        limit = config.psi_alarm if is_alarm else config.psi_warn
        # a class says something of its own only by what goes beyond all classes together
        own = shift.psi - (whole.get(quantity.name, 0.0) if quantity.class_name else 0.0)
        if quantity.class_name is not None and own < config.psi_warn:
            continue
        class_name = quantity.class_name
        text = f"{model_key}: {quantity.name}"
        if class_name is not None:
            text += f" of {class_name}"
        if quantity.name in ("classes", "words"):
            class_name = shift.label
            what = "class" if quantity.name == "classes" else "word"
            text += (
                f", {what} {shift.label}: {shift.share_now:.1%}, before {shift.share_before:.1%}"
            )
        else:
            text += f": {shift.share_now:.1%} at {shift.label}, before {shift.share_before:.1%}"
        text += f" (PSI {shift.psi:.2f})"
        level: Level = "alarm" if is_alarm else "warning"
        found.append(
            HealthFinding(
                level, model_key, quantity.name, class_name, shift.psi, limit, own / limit, text
            )
        )
    return found


def _gone(model_key: str, now: Night, baseline: Sequence[Night]) -> list[HealthFinding]:
    """Classes that every night had and this one has not; rare ones weigh too little in the PSI."""
    sampled = sum(each.num_sampled for each in baseline)
    total = sum(sum(each.counts.values()) for each in baseline)
    found = []
    for name in dict.fromkeys(name for each in baseline for name in each.counts):
        before = sum(each.counts.get(name, 0.0) for each in baseline)
        expected = before / max(1, sampled) * now.num_sampled
        if now.counts.get(name, 0.0) == 0 and expected >= _EXPECTED:
            text = f"{model_key}: nothing of {name}, {expected:,.0f} were to be expected"
            rank = 4 + 20 * before / total
            found.append(HealthFinding("alarm", model_key, "gone", name, 0, expected, rank, text))
    return found


def _one_sentence(model_key: str, now: Night, baseline: Sequence[Night]) -> list[HealthFinding]:
    """A captioner that says the same of many images: words alone tell it less well."""
    name = "most frequent caption"
    share, usual = now.means.get(name, 0.0), median(one.means.get(name, 0.0) for one in baseline)
    limit = max(0.2, 3 * usual)
    if share < limit:
        return []
    text = f"{model_key}: one sentence is given to {share:.0%} of the images, before {usual:.0%}"
    return [HealthFinding("alarm", model_key, "one sentence", None, share, limit, 50 * share, text)]


health_task = stage("health")(check_health)
