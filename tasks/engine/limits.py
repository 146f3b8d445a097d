"""What no image may exceed, whatever its format, and why one could not be decoded."""

from dataclasses import dataclass

from PIL import Image

from pixelmill.tasks.engine.header import DecodeError, DecodeReason

__all__ = ["Limits", "reason_of"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that every decoder asks before it allocates.

    Attributes:
        max_pixels: of the whole image; `ingest.max_pixels`.
        max_side: of its height and of its width; `ingest.max_side`.
    """

    max_pixels: int
    max_side: int

    def check(self, width: int, height: int) -> None:
        """Refuse an image by what its header says.

        Raises:
            DecodeError: `too_many_pixels` or `side_too_long`.
        """
        if width * height > self.max_pixels:
            raise DecodeError(
                "too_many_pixels",
                f"{width} x {height} is {width * height} pixels, more than ingest.max_pixels = "
                f"{self.max_pixels}",
            )
        if max(width, height) > self.max_side:
            raise DecodeError(
                "side_too_long",
                f"{width} x {height} pixels: a side is longer than ingest.max_side = "
                f"{self.max_side}",
            )


def reason_of(err: Exception) -> DecodeReason:
    """The reason that a decoder's own exception stands for."""
    if isinstance(err, Image.DecompressionBombError):  # a GIF frame that outgrows its screen
        return "too_many_pixels"
    message = str(err).lower()
    if "truncated" in message or "premature end" in message or isinstance(err, EOFError):
        return "truncated"
    if "unsupported marker" in message:  # of no JPEG at all: flipped bits have made it
        return "corrupt"
    if "unsupported" in message or "not supported" in message or "not implemented" in message:
        return "unsupported"
    return "corrupt"
