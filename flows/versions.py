"""What workers must have in common with us: who computes with other code gets other results."""

import functools
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pixelmill.models.spec import ModelSpec

__all__ = ["Needs", "WrongVersionsError", "describe_difference", "find_needs", "refuse_others"]

# Package -> version; as (name, version) pairs it can be a key of a cache
Needs = Mapping[str, str]

# Dask's own word for what workers are asked: other versions do not understand one another
_ALWAYS = ("pixelmill", "dask", "distributed")
# What decodes, resizes and computes every image
_COMPUTING = ("torch", "torchvision", "torchcodec", "simplejpeg", "pillow", "numpy")
_BY_ENGINE = {"openvino": "openvino", "onnxruntime": "onnxruntime"}
_BY_ARCHITECTURE = {
    "timm": "timm",
    "smp": "segmentation-models-pytorch",
    "transformers": "transformers",
}


class WrongVersionsError(RuntimeError):
    """A worker has other versions than the process that hands out the shards."""


def find_needs(specs: "Sequence[ModelSpec]" = ()) -> dict[str, str]:
    """What a worker must have to score with these models as this process would.

    Python is not among it: shards are sent as references, and no result depends on it.
    """
    names = [*_ALWAYS, *_COMPUTING]
    for spec in specs:
        names.append(_BY_ENGINE.get(spec.engine, ""))
        names.append(_BY_ARCHITECTURE.get(spec.architecture.partition("/")[0], ""))
    return {name: version(name) for name in dict.fromkeys(filter(None, names))}


def describe_difference(needs: Needs, found: Mapping[str, str | None]) -> str | None:
    """What somebody has that we have not, and the remedy; None where all is the same.

    Builds of one version (2.9.0+cpu, 2.9.0+cu128) count as the same: a CPU may hand out shards to
    GPUs, and which of them computed is in the receipt.

    Args:
        needs: of `find_needs`.
        found: package -> version, None where it is not installed.
    """
    others = {name: found.get(name) for name in needs if not _same(needs[name], found.get(name))}
    if not others:
        return None
    theirs = " and ".join(f"{name} {has}" if has else f"no {name}" for name, has in others.items())
    ours = " and ".join(f"{name} {needs[name]}" for name in others)
    wanted = " ".join(f"{name}=={_public(needs[name])}" for name in others)
    return f"has {theirs}, this is {ours}: install {wanted} where the workers run"


def refuse_others(needs: tuple[tuple[str, str], ...]) -> None:
    """Asked by a worker before it begins a shard: it may have come since all were looked at.

    Raises:
        WrongVersionsError: this process would get other results.
    """
    difference = describe_difference(dict(needs), _installed(tuple(name for name, _ in needs)))
    if difference is not None:
        raise WrongVersionsError(f"this worker {difference}")


@functools.cache
def _installed(names: tuple[str, ...]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _same(ours: str, theirs: str | None) -> bool:
    return theirs is not None and _public(ours) == _public(theirs)


def _public(text: str) -> str:
    """A version without its build."""
    return text.partition("+")[0]
