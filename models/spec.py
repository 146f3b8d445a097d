"""A model's complete description: small enough to send, complete enough to rebuild and to name."""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from pixelmill.configs.schema import (
    AugmentationConfig,
    BoxPostprocess,
    CaptionPostprocess,
    ClassificationPostprocess,
    EngineName,
    PreprocessConfig,
    TaskName,
    TilingConfig,
)

__all__ = ["ONNX", "RESULTS_VERSION", "ModelSpec", "default_engine"]

# The architecture of .onnx files
ONNX = "onnx"

# Raised when the code changes what is stored for the same spec: a new version is a new model key.
RESULTS_VERSION = 1

Arguments = dict[str, int | float | str | bool | tuple[int | float | str, ...] | None]


def default_engine(architecture: str) -> EngineName:
    """What runs a network where nothing else is asked for, and what others must agree with."""
    return "onnxruntime" if architecture == ONNX else "torch"


class ModelSpec(BaseModel):
    """A `ModelConfig` with everything found that it left out.

    Attributes:
        weights_path: local file, or folder that `save_pretrained` wrote; not part of the key.
        weights_sha256: hex digest of that file, or of all files of the folder that are read.
        revision: commit of the Hugging Face Hub that the folder is; not part of the key, for what
            it changes is in the digest, and a corrected README is not to have all scored again.
        code_path: the user's Python file with the network, or None; not part of the key.
        code_sha256: hex digest of the source that builds the network, if it is not ours and from
            no library that we know.
        decode_path: local file of the user's decode function and its name, or None; the digest of
            the source is part of the key, its place is not.
        quantized_path: local file of the graphs in int8, or None; the digest is part of the key.
        engine: what runs the forward pass.
        engine_note: why that is not the engine that the config asks for; not part of the key.
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
    revision: str | None = None
    code_path: str | None = None
    code_sha256: str | None = None
    decode_path: str | None = None
    decode_function: str | None = None
    decode_sha256: str | None = None
    classes: tuple[str, ...]
    vocabulary: tuple[str, ...] = ()
    preprocess: PreprocessConfig
    precision: str
    quantized_path: str | None = None
    quantized_sha256: str | None = None
    engine: EngineName = Field(default_factory=lambda data: default_engine(data["architecture"]))
    engine_note: str = ""
    postprocess: BoxPostprocess | CaptionPostprocess | ClassificationPostprocess | None = None
    tiling: TilingConfig | None = None
    augmentation: AugmentationConfig = AugmentationConfig()
    batch_size: int | Literal["auto"] = "auto"
    trust: bool = False

    @cached_property
    def key(self) -> str:
        """`<name>-<8 hex>`: a digest of all that changes results and of nothing else."""
        identity = self.model_dump(
            mode="json",
            exclude={
                "name", "weights_path", "decode_path", "quantized_path", "engine_note",
                "batch_size", "trust", "code_path", "revision",
            },
        )  # fmt: skip
        if self.engine == default_engine(self.architecture):  # as before there was a choice
            identity.pop("engine")
        if self.quantized_sha256 is None:  # as before there was int8
            identity.pop("quantized_sha256")
        if isinstance(self.postprocess, BoxPostprocess):
            identity["postprocess"].pop("keep_candidates")
        if self.preprocess.decode == "full":  # as before there was a choice
            identity["preprocess"].pop("decode")
        if self.preprocess.interpolation == "bilinear":  # likewise
            identity["preprocess"].pop("interpolation")
        if self.code_sha256 is None:  # as before there was code of others
            identity.pop("code_sha256")
        identity["results_version"] = RESULTS_VERSION
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return f"{self.name}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"

    @property
    def graph_identity(self) -> dict[str, Any]:
        """All that a converted trunk follows from, beside the canvas."""
        return {
            "weights": self.weights_sha256,
            "architecture": self.architecture,
            "arguments": self.arguments,
            "code": self.code_sha256,
            "pixels": self.preprocess.model_dump(include={"mean", "std", "channels"}),
        }

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, but the copy finds its own key: pydantic copies what is cached too."""
        copy = super().model_copy(update=update, deep=deep)
        vars(copy).pop("key", None)
        return copy
