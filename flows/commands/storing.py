"""Commands on a store: publish."""

from pixelmill.flows.commands.options import StoreRoot
from pixelmill.flows.commands.running import ExitCode

__all__ = ["publish"]


def publish(store: StoreRoot = "pixelmill-store", /) -> ExitCode:
    """Show readers what a killed run had finished.

    Example: pixelmill publish results

    `score` does it too; this is for when nothing is to be scored.
    """
    from pixelmill.tasks.store import Store
    from pixelmill.tasks.store import publish as publish_store

    summary = publish_store(Store(store))
    print(f"{summary.num_shards} shards published: {summary.num_images} rows of images")
    return ExitCode.COMPLETE
