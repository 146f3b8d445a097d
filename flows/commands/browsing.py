"""gallery, browse: looking at images."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from pixelmill.flows.commands.options import StoreRoot, UsageError
from pixelmill.flows.commands.running import ExitCode

if TYPE_CHECKING:
    from pixelmill.tasks.image_list import ImageList

__all__ = ["browse", "gallery"]

QUERY = Group("Which images of a store")


def gallery(
    source: Annotated[str, Parameter(help="Folder or URL of images, or a Pixelmill store.")],
    /,
    *,
    size: Annotated[int, Parameter(help="Height of the pictures in pixels.")] = 120,
    sample: Annotated[int, Parameter(help="Images at most; of more, a sample.")] = 1000,
    seed: Annotated[int, Parameter(help="Of the sample.")] = 0,
    match: Annotated[
        str | None, Parameter(help="Glob over the paths, such as '2026/**' or '*_left.jpg'.")
    ] = None,
    class_name: Annotated[
        str, Parameter(name="--class", help="Found in the image.", group=QUERY)
    ] = "",
    model: Annotated[str, Parameter(help="Key of the model that found it.", group=QUERY)] = "",
    low: Annotated[float, Parameter(name="--score-from", help="Least.", group=QUERY)] = 0.0,
    high: Annotated[float, Parameter(name="--score-to", help="Greatest.", group=QUERY)] = 1.0,
    text: Annotated[str, Parameter(help="In the path or a caption.", group=QUERY)] = "",
    state: Annotated[
        Literal["any", "found", "empty", "failed", "flagged"],
        Parameter(help="What became of the image.", group=QUERY),
    ] = "any",
    to: Annotated[Path, Parameter(help="The HTML file.")] = Path("gallery.html"),
) -> ExitCode:
    """Write a contact sheet of any folder, or of what a query finds in a store.

    Example: pixelmill gallery photos --size 40 --sample 2000

    One HTML file that needs no network. Files that cannot be read
    are shown as such.
    """
    from pixelmill.tasks.image_list import ImageList

    query = (class_name, model, low, high, text, state)
    if _is_store(source):
        images = _found_in(source, *query)
    elif query != ("", "", 0.0, 1.0, "", "any"):
        raise UsageError(f"{source} is no store: only --match chooses among a folder's images")
    else:
        images = ImageList.from_folder(source)
    if match is not None:
        images = images.filter(match)
    html = images.page(size=size, sample=sample, seed=seed)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(html, encoding="utf-8")
    print(to)
    return ExitCode.COMPLETE


def _is_store(source: str) -> bool:
    from pixelmill.tasks.store import Store

    try:
        Store(source)
    except FileNotFoundError:
        return False
    return True


def _found_in(
    source: str,
    class_name: str,
    model: str,
    low: float,
    high: float,
    text: str,
    state: Literal["any", "found", "empty", "failed", "flagged"],
) -> "ImageList":
    """The images of a store that a query finds, of all that it has."""
    from pixelmill.tasks.browse import Filter, Index
    from pixelmill.tasks.image_list import ImageList
    from pixelmill.tasks.store import Store

    index = Index(Store(source))
    try:
        wanted = Filter(
            model=model, class_name=class_name, low=low, high=high, text=text, state=state
        )
        name = class_name or text or (state if state != "any" else Path(source).name)
        total = index.page(Filter(), 0, 1).total
        return ImageList.from_table(name, index.table(wanted), num_listed=total)
    finally:
        index.close()


def browse(
    store: StoreRoot = "pixelmill-store",
    /,
    *,
    port: Annotated[int, Parameter(help="Of the page; else any that is free.")] = 0,
    host: Annotated[
        str, Parameter(help="Address to listen on; others than this let other machines in.")
    ] = "127.0.0.1",
    open_browser: Annotated[
        bool, Parameter(name="--open", help="Open it in the browser.", negative=())
    ] = False,
) -> ExitCode:
    """Serve a local web page to search and look at a store's images.

    Example: pixelmill browse results --open

    Only who has the printed address can use it; nothing can be changed
    by it. Runs may write to the store meanwhile. Ctrl-C ends it.
    """
    from pixelmill.tasks.browse import serve
    from pixelmill.tasks.store import Store

    def tell(address: str) -> None:
        print(f"{address}\nCtrl-C ends it.", flush=True)
        if open_browser:
            import webbrowser

            webbrowser.open(address)

    with suppress(KeyboardInterrupt):  # the way to end it
        serve(Store(store), host=host, port=port, tell=tell)
    return ExitCode.COMPLETE
