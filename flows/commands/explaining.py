"""explain."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from pixelmill.flows.commands.options import AsJson, StoreRoot
from pixelmill.flows.commands.running import ExitCode
from pixelmill.tasks.display import printable, redact

if TYPE_CHECKING:
    from pixelmill.tasks.lineage import Lineage
    from pixelmill.tasks.rescore import Rescore

__all__ = ["explain"]


def explain(
    image: Annotated[str, Parameter(help="Path in the catalog, or image_id.")],
    /,
    *,
    store: StoreRoot = "pixelmill-store",
    model: Annotated[
        str | None, Parameter(help="Key, or current:TASK; else all that scored it.")
    ] = None,
    no_rescore: Annotated[
        bool, Parameter(help="Only tell where the predictions come from.", negative=())
    ] = False,
    json: AsJson = False,
) -> ExitCode:
    """Tell where an image's predictions come from, and score it again.

    Example: pixelmill explain 2024/05/31/a.jpg --store results

    The run, the code and libraries, the configuration, the weights and
    the file; then the image is scored with the recorded model and
    settings, beside the store. Exits with 0 if the result is the same,
    bit for bit or within the tolerance that is told, else with 1.
    """
    from pixelmill.tasks.lineage import trace
    from pixelmill.tasks.rescore import rescore
    from pixelmill.tasks.store import Store

    opened = Store(store)
    documents = []
    is_same = True
    for lineage in trace(opened, image, model):
        again = None if no_rescore else rescore(opened, lineage)
        is_same &= again is None or again.verdict in ("identical", "within tolerance")
        if json:
            documents.append(_document(lineage, again))
        else:
            _show(lineage, again)
    if json:
        from json import dumps

        print(dumps(documents, indent=2))
    return ExitCode.COMPLETE if is_same else ExitCode.FAILED


def _document(lineage: "Lineage", again: "Rescore | None") -> dict[str, Any]:
    from dataclasses import asdict

    return lineage.to_dict() | {"again": None if again is None else asdict(again)}


def _show(lineage: "Lineage", again: "Rescore | None") -> None:
    row, run, spec = lineage.row, lineage.run, lineage.spec
    facts = {
        "model": f"{row['model']} ({spec.task}, {spec.architecture})",
        "image": f"{row['image_id']} = {row['source_uri']} ({row['size_bytes']:,} bytes)",
        "scored": f"{row['scored_at']:%Y-%m-%d %H:%M:%S} UTC for {row['date']}, {row['status']}",
        "run": f"{run.run_id}, shard {row['shard_id'].rpartition('-')[2]}, try {lineage.attempt}",
        "config": f"{run.config.get('name', '')}: {run.source} as {run.collection}",
        "weights": f"{spec.weights_path} sha256 {spec.weights_sha256}",
        "engine": lineage.engine or f"{spec.engine} {spec.precision}",
        "software": ", ".join(f"{name} {each}" for name, each in run.software.items())
        or "not recorded",
    }
    for name, text in facts.items():
        _say(f"{name:9} {text}")
    if again is not None:
        verdicts = {
            "identical": "the same, bit for bit",
            "within tolerance": "the same within the tolerance",
            "different": "DIFFERENT",
            "impossible": "not possible",
        }
        _say(f"{'again':9} {verdicts[again.verdict]}")
        for text in again.differences:
            _say(f"{'':9} {text}")
        if again.verdict != "identical":
            for name, then, now in again.changes:
                _say(f"{'':9} {name} was {then}, is {now}")
            if again.verdict == "within tolerance" and not again.changes:
                _say(f"{'':9} nothing else changed: it was scored in a batch with other images")
    print()


def _say(text: str) -> None:
    print(printable(redact(text)))
