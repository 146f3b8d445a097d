"""A model's complete description: small enough to send, complete enough to rebuild and to name."""

import hashlib
import json
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pixelmill.configs.schema import (
    AugmentationConfig,
    BoxPostprocess,
    CaptionPostprocess,
    ClassificationPostprocess,
    PreprocessConfig,
    TaskName,
    TilingConfig,
)

__all__ = ["RESULTS_VERSION", "ModelSpec"]

# Raised when the code changes what is stored for the same spec: a new version is a new model key.
RESULTS_VERSION = 1

Arguments = dict[str, int | float | str | bool | tuple[int | float | str, ...] | None]


class ModelSpec(BaseModel):
    """A `ModelConfig` with everything found that it left out.

    Attributes:
        weights_path: local file; not part of the key.
        weights_sha256: hex digest of that file.
        decode_path: local file of the user's decode function and its name, or None; the digest of
            the source is part of the key, its place is not.
        batch_size: images per forward pass, "auto" by measurement; not part of the key.
        trust: the weights file may run code; not part of the key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    task: TaskName
    architecture: str
    arguments: Arguments
    weights_path: str
    weights_sha256: str
    decode_path: str | None = None
    decode_function: str | None = None
    decode_sha256: str | None = None
    classes: tuple[str, ...]
    vocabulary: tuple[str, ...] = ()
    preprocess: PreprocessConfig
    precision: str
    postprocess: BoxPostprocess | CaptionPostprocess | ClassificationPostprocess | None = None
    tiling: TilingConfig | None = None
    augmentation: AugmentationConfig = AugmentationConfig()
    batch_size: int | Literal["auto"] = "auto"
    trust: bool = False

    @cached_property
    def key(self) -> str:
        """`<name>-<8 hex>`: a digest of all that changes results and of nothing else."""
        identity = self.model_dump(
            mode="json", exclude={"name", "weights_path", "decode_path", "batch_size", "trust"}
        )
        if isinstance(self.postprocess, BoxPostprocess):
            identity["postprocess"].pop("keep_candidates")
        if self.preprocess.decode == "full":  # as before there was a choice
            identity["preprocess"].pop("decode")
        identity["results_version"] = RESULTS_VERSION
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return f"{self.name}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"
