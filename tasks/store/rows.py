"""What a scorer tells the store of each input; the store adds provenance, counts and places."""

from dataclasses import dataclass

__all__ = ["CatalogRow", "FailureRow", "ImageRow"]


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image that was scored.

    Attributes:
        image_id: first 32 hex digits of the sha256 of the encoded bytes.
        path: relative to the listed root, '/' between the parts.
        width: pixels, after EXIF orientation; height likewise.
        modified: mtime in nanoseconds or etag, as text.
        status: "ok", or comma-separated flags such as "truncated".
    """

    image_id: str
    collection: str
    path: str
    source_uri: str
    width: int
    height: int
    size_bytes: int
    modified: str
    status: str = "ok"


@dataclass(frozen=True, slots=True)
class CatalogRow:
    """An input whose bytes were read: where it lies and which image it is.

    Attributes:
        width: pixels, after EXIF orientation; None when the header could not be read.
    """

    collection: str
    path: str
    source_uri: str
    size_bytes: int
    modified: str
    image_id: str
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True)
class FailureRow:
    """An input, or one model on it, that could not be scored.

    Attributes:
        image_id: None when the bytes could not be read.
        model_key: None when no model was reached.
        stage: step that failed, such as "read", "decode", "score".
        reason: short code; `message` is what the library said.
        retryable: whether the same bytes may succeed later.
    """

    collection: str
    path: str
    source_uri: str
    stage: str
    reason: str
    message: str
    retryable: bool
    size_bytes: int | None = None
    modified: str | None = None
    image_id: str | None = None
    model_key: str | None = None
