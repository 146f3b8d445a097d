"""compare."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pixelmill.configs.schema import EvaluationConfig, RunConfig
from pixelmill.flows.commands.options import AsJson, Collection, Truth, UsageError, merge_truth
from pixelmill.flows.commands.running import ExitCode, console

if TYPE_CHECKING:
    from pixelmill.tasks.comparison.compare import TruthReader
    from pixelmill.tasks.slices import TruthComparison
    from pixelmill.tasks.store import Store

__all__ = ["compare"]

_TRUTH = Truth()
Side = Annotated[
    str,
    Parameter(
        help="A model's key or name or a run's id, of --store; or the folder or URL of a store."
    ),
]


def compare(
    a: Side,
    b: Side,
    /,
    *,
    store: Annotated[str, Parameter(help="Where models and runs are.")] = "pixelmill-store",
    collection: Collection = None,
    model: Annotated[
        tuple[str, ...],
        Parameter(help="Only models of this key or name, of runs and stores.", negative=()),
    ] = (),
    sample: Annotated[int | None, Parameter(help="Compare so many images, else all.")] = None,
    masks: Annotated[
        bool, Parameter(help="Instance masks too: reading them takes most of the time.")
    ] = True,
    with_truth: Annotated[
        bool,
        Parameter(
            help="Also by the truth of the run's configuration; naming truth does it too.",
            negative=(),
        ),
    ] = False,
    slice: Annotated[
        tuple[str, ...],
        Parameter(help="By truth, also per size, aspect, date, folder or column.", negative=()),
    ] = (),
    truth: Truth = _TRUTH,
    to: Annotated[Path | None, Parameter(help="Folder of the files; else in the store.")] = None,
    json: AsJson = False,
) -> ExitCode:
    """Tell what changed between two models, runs or stores; truth is not needed.

    Example: pixelmill compare detector-1a2b3c4d detector-5e6f7a8b --store results
    Example: pixelmill compare results-old results-new --model detector

    The same images are paired: which boxes are the same, moved, of another
    class, lost or gained; how scores shifted; where masks, captions and
    labels differ. What changed most comes first.
    """
    if sample is not None and sample < 1:
        raise UsageError(f"--sample must be at least 1, got {sample}")
    from json import dumps

    from pixelmill.flows.printing import print_comparison
    from pixelmill.flows.results import keep_results, results_folder
    from pixelmill.tasks.comparison.compare import compare_sides
    from pixelmill.tasks.comparison.save import ImageTable, folder_name, save_comparison
    from pixelmill.tasks.comparison.sides import open_side
    from pixelmill.tasks.report.compare import build_compare_page

    opened = _open(store, a, b)
    side_a, side_b = (open_side(name, opened, model) for name in (a, b))
    wants_truth = with_truth or truth != _TRUTH or bool(slice)
    read_truth = None
    if wants_truth:
        if opened is None:
            raise UsageError(
                "truth compares models of one store: give their keys and --store, and score into "
                "one store what shall be compared"
            )
        read_truth = _truth_reader(opened, collection, truth, slice)
    name = folder_name("compare", a, b)
    folder = to or results_folder(side_b.store, name)
    with ImageTable(folder) as images:
        found = compare_sides(
            side_a, side_b, collection=collection, sample=sample, with_masks=masks, sink=images,
            read_truth=read_truth,
        )  # fmt: skip
    page = build_compare_page(found, side_a.store, side_b.store, folder / "compare.html")
    paths = (*save_comparison(found, folder), images.path, page)
    if to is None:
        keep_results(side_b.store, name, paths)
    if json:
        print(dumps(found.to_dict(), ensure_ascii=False, indent=2))
    else:
        print_comparison(console(), found)
        console().print(f"report  {page}", highlight=False, markup=False, soft_wrap=True)
    return ExitCode.COMPLETE


def _open(store: str, a: str, b: str) -> "Store | None":
    """The store that both names are looked for in; None if they are stores themselves."""
    if all("://" in name or Path(name).is_dir() for name in (a, b)):
        return None
    from pixelmill.tasks.store import Store

    return Store(store)


def _truth_reader(
    store: "Store", collection: str | None, truth: Truth, slices: tuple[str, ...]
) -> "TruthReader":
    from pixelmill.flows.evaluation import find_last_run
    from pixelmill.flows.job import find_truth, truth_base
    from pixelmill.tasks.slices import compare_by_truth

    run = find_last_run(store, collection)
    base = truth_base(run.source)
    if truth != _TRUTH:
        config = merge_truth(EvaluationConfig(), truth)
    else:
        configured = RunConfig.model_validate(run.config).evaluation
        config = find_truth(configured, base) or configured

    def read(model_a: str, model_b: str) -> "tuple[TruthComparison, ...]":
        return compare_by_truth(
            store, config, model_a, model_b, base=base, collection=run.collection,
            slices=slices,
        )  # fmt: skip

    return read
