"""What weights of others say about their use, and how a configuration changes it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pixelmill.configs.schema import CanvasSize, PreprocessConfig
from pixelmill.models.spec import Arguments

__all__ = ["Defaults", "merge_preprocess", "usual_canvases"]


class Defaults(NamedTuple):
    """What is known of a model before its configuration is asked.

    Attributes:
        classes: names by index; None where the weights do not say.
        arguments: of the builder, those of the configuration among them.
        preprocess: as the weights were trained; None where they do not say.
        postprocess: values of its fields that suit the network, such as no suppression for one
            that was trained not to need it.
    """

    classes: tuple[str, ...] | None
    arguments: Arguments
    preprocess: PreprocessConfig | None
    postprocess: Mapping[str, Any] = {}


def merge_preprocess(
    known: PreprocessConfig | None, asked: PreprocessConfig | None
) -> PreprocessConfig | None:
    """What is asked for, and what is known for all that is not."""
    if known is None or asked is None:
        return asked or known
    merged = known.model_dump() | asked.model_dump(include=asked.model_fields_set)
    if merged["resize"] != "center_crop" and "crop_from" not in asked.model_fields_set:
        merged["crop_from"] = None
    return PreprocessConfig.model_validate(merged)


def usual_canvases(shorter: int, longest: int | None, multiple: int) -> tuple[CanvasSize, ...]:
    """Canvases of the usual aspects, 1, 4:3, 3:2 and 16:9, lying and standing.

    Args:
        shorter: side, pixels.
        longest: side at most, pixels.
        multiple: of all sides, upwards.
    """

    def up(length: float) -> int:
        return -(-int(length) // multiple) * multiple

    limit = up(longest) if longest else None
    sizes: dict[CanvasSize, None] = {(up(shorter), up(shorter)): None}
    for aspect in (4 / 3, 3 / 2, 16 / 9):
        longer = up(shorter * aspect)
        longer = min(longer, limit) if limit else longer
        sizes[up(shorter), longer] = None
        sizes[longer, up(shorter)] = None
    return tuple(sizes)
