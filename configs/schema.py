"""What a run's YAML may say: every field with its type, unit, bounds, default and meaning."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)

__all__ = [
    "STARTED_CLUSTERS",
    "AugmentationConfig",
    "BackfillConfig",
    "BoxPostprocess",
    "CanaryConfig",
    "CaptionModel",
    "CaptionPostprocess",
    "ClassificationModel",
    "ClassificationPostprocess",
    "ComputeConfig",
    "DetectionModel",
    "EngineName",
    "EvaluationConfig",
    "Gate",
    "IngestConfig",
    "InstanceModel",
    "JobsConfig",
    "KubernetesConfig",
    "ModelConfig",
    "NightlyConfig",
    "NotifyConfig",
    "Outcome",
    "PbsConfig",
    "Precision",
    "PreprocessConfig",
    "RunConfig",
    "SemanticModel",
    "ShardConfig",
    "SlurmConfig",
    "StartedCluster",
    "TaskName",
    "TilingConfig",
    "TrainConfig",
]

TaskName = Literal[
    "classification", "detection", "instance_segmentation", "semantic_segmentation", "captioning"
]
EngineName = Literal["torch", "openvino", "torch-compile", "onnxruntime"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveNumber = Annotated[float, Field(gt=0)]
CanvasSize = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]


def _on_local_disk(path: str) -> str:
    scheme, separator, _ = path.partition("://")
    if separator:
        raise ValueError(
            f"must be on a local disk, got a {scheme}:// URL; copy it here and name the copy"
        )
    return path


LocalPath = Annotated[str, AfterValidator(_on_local_disk)]


class Frozen(BaseModel):
    """Immutable, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class IngestConfig(Frozen):
    """Which files of a folder are images to score."""

    suffixes: tuple[str, ...] = Field(
        default=(
            ".jpg", ".jpeg", ".jpe", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif",
            ".avif", ".heic", ".heif",
        ),
        description="file name endings that are listed, compared without case",
    )  # fmt: skip
    include: tuple[str, ...] = Field(
        default=(), description="globs on the relative path; empty: every path"
    )
    exclude: tuple[str, ...] = Field(
        default=(), description="globs on the relative path that are left out"
    )
    max_pixels: int = Field(
        default=200_000_000,
        gt=0,
        description="images with more pixels in their header are quarantined unread (bombs)",
    )
    max_file_bytes: int = Field(
        default=1_000_000_000, gt=0, description="files larger than this are quarantined unread"
    )
    max_side: int = Field(
        default=65_535,
        gt=0,
        description="images with a longer side, in pixels, are quarantined unread",
    )
    max_decode_s: float = Field(
        default=60.0,
        gt=0,
        description="an image whose decoding takes longer is quarantined; a worker that hangs in "
        "it ends itself and is started again",
    )
    truncated: Literal["quarantine", "flag"] = Field(
        default="quarantine",
        description="files that end too early: quarantine, or score what is there and flag it",
    )
    settle_s: float = Field(
        default=0.0,
        ge=0,
        description="files of a local folder that were changed within so many seconds are left for "
        "the next run: somebody may still be copying them",
    )


class PreprocessConfig(Frozen):
    """How an image is laid on the network's canvas; part of the model key."""

    resize: Literal["letterbox", "stretch", "center_crop"] = Field(
        default="letterbox",
        description="letterbox: keep aspect, top-left aligned, padded; stretch: fill the canvas; "
        "center_crop: shorter side to crop_from, then the central canvas",
    )
    canvases: tuple[CanvasSize, ...] = Field(
        min_length=1,
        description="(height, width) choices in pixels; an image takes the one that it fills most",
    )
    antialias: bool = Field(
        default=True,
        description="smooth before shrinking; false for networks trained on OpenCV's plain "
        "bilinear resizing",
    )
    interpolation: Literal["bilinear", "bicubic"] = Field(
        default="bilinear", description="of the resizing, as the network was trained"
    )
    crop_from: int | None = Field(
        default=None, gt=0, description="shorter side before a center_crop, pixels"
    )
    channels: Literal["rgb", "bgr"] = Field(
        default="rgb", description="channel order of the network"
    )
    mean: tuple[float, float, float] = Field(
        default=(0.485, 0.456, 0.406), description="subtracted after scaling to [0, 1]"
    )
    std: tuple[float, float, float] = Field(
        default=(0.229, 0.224, 0.225), description="divided by after the mean"
    )
    pad_value: int = Field(default=114, ge=0, le=255, description="grey level of the padding")
    decode: Literal["full", "scaled", "gpu"] = Field(
        default="full",
        description="scaled: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is still "
        "1.5 times what the canvas shows of it: faster, and nearly the same pixels; gpu: JPEGs are "
        "decoded and resized by the GPU, where CPU cores cannot keep it busy, and flagged "
        "unverified, as its decoder reports no damage",
    )

    @model_validator(mode="after")
    def _crop_needs_a_size(self) -> "PreprocessConfig":
        if (self.resize == "center_crop") != (self.crop_from is not None):
            raise ValueError("crop_from goes with resize: center_crop, and only with it")
        return self

    @model_validator(mode="after")
    def _bicubic_is_smooth(self) -> "PreprocessConfig":
        if self.interpolation == "bicubic" and not self.antialias:
            raise ValueError("interpolation: bicubic is antialiased; leave out antialias: false")
        return self


class BoxPostprocess(Frozen):
    """From candidates to the boxes that are stored; part of the model key."""

    score_threshold: Fraction = Field(default=0.05, description="candidates below it are dropped")
    class_thresholds: dict[str, Fraction] = Field(
        default_factory=dict,
        description="score threshold by class name, instead of score_threshold",
    )
    nms: Literal["hard", "soft_linear", "soft_gaussian", "weighted_fusion", "none"] = Field(
        default="hard", description="how overlapping candidates are reconciled"
    )
    class_agnostic: bool = Field(default=False, description="boxes of different classes compete")
    iou_threshold: Fraction = Field(default=0.5, description="overlap at which boxes compete")
    overlap: Literal["iou", "ios"] = Field(
        default="iou", description="intersection over union, or over the smaller box"
    )
    sigma: float = Field(default=0.5, gt=0, description="width of the soft_gaussian decay")
    pre_nms_top_k: int = Field(default=1000, gt=0, description="best candidates per image kept")
    max_detections: int = Field(default=100, gt=0, le=65_534, description="boxes kept per image")
    min_size: float = Field(default=0.0, ge=0, description="least box side in original pixels")
    mask_threshold: Fraction = Field(default=0.5, description="mask probability that is inside")
    keep_candidates: bool = Field(
        default=False, description="also store the candidates before suppression"
    )


class ClassificationPostprocess(Frozen):
    """From class probabilities to stored labels; part of the model key."""

    top_k: int = Field(default=5, gt=0, description="labels stored per image")
    score_threshold: Fraction = Field(default=0.0, description="labels below it are not stored")


class CaptionPostprocess(Frozen):
    """How a caption is searched; part of the model key."""

    beam_size: int = Field(default=3, gt=0, description="1 is greedy search")
    max_tokens: int = Field(default=30, gt=0, description="longest caption, in tokens")
    length_penalty: float = Field(
        default=0.7, ge=0, description="log probabilities are divided by length to this power"
    )


class TilingConfig(Frozen):
    """Large images are scored tile by tile; part of the model key."""

    tile: CanvasSize = Field(description="(height, width) of a tile in original pixels")
    overlap: float = Field(
        default=0.2,
        ge=0,
        le=0.9,  # 100 views of every pixel; at 0.99 it would be 10,000
        description="share of a tile that neighbours share",
    )
    min_pixels: int = Field(default=0, ge=0, description="images with fewer pixels are not tiled")
    include_full: bool = Field(
        default=True, description="score the whole image too, for objects larger than a tile"
    )
    border: int = Field(
        default=8,
        ge=0,
        description="boxes cut by an inner tile edge closer than this many pixels are dropped",
    )


class AugmentationConfig(Frozen):
    """Test-time augmentation; part of the model key."""

    horizontal_flip: bool = Field(default=False, description="score the mirrored image too")
    vertical_flip: bool = Field(default=False, description="score the image upside down too")
    scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(1.0,), min_length=1, description="canvas sizes relative to the configured one"
    )


class _Model(Frozen):
    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]*$", description="slug; with 8 hex digits it is the model key"
    )
    architecture: str | None = Field(
        default=None,
        description="a name that `pixelmill models list` has, such as unet, torchvision/<builder>, "
        "timm/<name> or smp/<name>; `package.module:function` or `file.py:function` of your own; "
        "left out: what the weights say",
    )
    arguments: dict[str, int | float | str | bool | tuple[int | float | str, ...] | None] = Field(
        default_factory=dict, description="keyword arguments of the architecture's builder"
    )
    weights: LocalPath = Field(
        description="a file (.safetensors, .pt, .onnx, .pt2), a folder that save_pretrained wrote, "
        "`hf:<owner>/<name>@<revision>` of the Hugging Face Hub, `embedded:<name>` for ours, "
        "`torchvision:<ENUM>` such as torchvision:DEFAULT, or `timm:DEFAULT`"
    )
    trust: bool = Field(
        default=False,
        description="whoever made the files may run code here: TorchScript, torch.export's .pt2, "
        "pickled modules and file.py:function are loaded only with it",
    )
    decode: str | None = Field(
        default=None,
        description="`file.py:function` that turns the raw outputs of an onnx or custom network "
        "into predictions",
    )
    classes: tuple[str, ...] | None = Field(
        default=None, description="class names by index; left out: what the weights say"
    )
    preprocess: PreprocessConfig | None = Field(
        default=None, description="left out: what the weights say"
    )
    engine: EngineName | Literal["auto"] | None = Field(
        default=None,
        description="what runs the forward pass: torch, openvino (CPU), torch-compile (minutes of "
        "compilation first), onnxruntime; auto: the fastest that is installed and answers as torch "
        "does, decided once and remembered; left out: torch, and onnxruntime for .onnx files",
    )
    precision: Precision = Field(
        default="fp32",
        description="of the forward pass; bf16 for GPUs and CPUs with AMX, fp16 for GPUs, int8 for "
        "CPUs (engine: openvino and quantized:)",
    )
    quantized: LocalPath | None = Field(
        default=None,
        description="precision: int8's file, which `pixelmill models quantize` writes",
    )
    batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        default="auto",
        description="images per forward pass; auto: the fastest by measurement, found on first use "
        "and remembered in the store; never changes a result",
    )

    @model_validator(mode="after")
    def _engine_has_the_precision(self) -> "_Model":
        known = _PRECISIONS.get(self.engine or "torch", ("fp32", "bf16", "fp16"))
        if self.precision not in known:
            raise ValueError(
                f"engine: {self.engine} computes in {' or '.join(known)}, got {self.precision}"
            )
        if (self.precision == "int8") != (self.quantized is not None):
            raise ValueError(
                "precision: int8 and quantized: belong together; `pixelmill models quantize` "
                "writes the file that quantized: names"
            )
        return self


# Of those that do not have all
_PRECISIONS: Mapping[str, tuple[Precision, ...]] = {
    "openvino": ("fp32", "bf16", "int8"),
    "onnxruntime": ("fp32",),
}


class _BoxModel(_Model):
    postprocess: BoxPostprocess = Field(default_factory=BoxPostprocess)
    tiling: TilingConfig | None = Field(default=None, description="tile by tile scoring")
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)


class DetectionModel(_BoxModel):
    """Boxes with classes and scores."""

    task: Literal["detection"] = "detection"


class InstanceModel(_BoxModel):
    """Boxes, and a mask for each."""

    task: Literal["instance_segmentation"] = "instance_segmentation"


class SemanticModel(_Model):
    """A class for every pixel."""

    task: Literal["semantic_segmentation"] = "semantic_segmentation"
    tiling: TilingConfig | None = Field(default=None, description="tile by tile scoring")
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)


class CaptionModel(_Model):
    """A sentence for the image."""

    task: Literal["captioning"] = "captioning"
    postprocess: CaptionPostprocess = Field(default_factory=CaptionPostprocess)


class ClassificationModel(_Model):
    """Classes for the whole image."""

    task: Literal["classification"] = "classification"
    postprocess: ClassificationPostprocess = Field(default_factory=ClassificationPostprocess)
    augmentation: AugmentationConfig = Field(default_factory=AugmentationConfig)


ModelConfig = Annotated[
    DetectionModel | InstanceModel | SemanticModel | CaptionModel | ClassificationModel,
    Field(discriminator="task"),
]


class ShardConfig(Frozen):
    """How the missing work is cut; changes no result."""

    max_images: int = Field(default=256, gt=0, le=65_535, description="images per shard at most")
    max_pixels: int = Field(
        default=400_000_000, gt=0, description="pixels per shard at most, from the headers"
    )


StartedCluster = Literal["slurm", "pbs", "kubernetes"]
STARTED_CLUSTERS: tuple[StartedCluster, ...] = get_args(StartedCluster)


class _Scaled(Frozen):
    """Grows by what waits and shrinks when nothing does, within bounds."""

    minimum: int = Field(
        default=0, ge=0, description="that stay while nothing waits; as many as maximum: no scaling"
    )
    maximum: int = Field(gt=0, description="at once")

    @property
    def max_workers(self) -> int:
        """Of all together."""
        return self.maximum

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> "_Scaled":
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is more than maximum {self.maximum}")
        return self


class JobsConfig(_Scaled):
    """Jobs of a queueing system, in each of which some workers run."""

    cores: int = Field(default=1, gt=0, description="of a job")
    memory: ByteSize = Field(description="of a job, such as 32GB")
    gpus: int = Field(default=0, ge=0, description="of a job; each gets one worker")
    processes: int | None = Field(
        default=None,
        gt=0,
        description="workers of a job; left out: one per GPU, or without any one per core",
    )
    walltime: timedelta = Field(
        default=timedelta(hours=1),
        ge=timedelta(minutes=5),
        description="of a job, hours:minutes:seconds; its workers leave in order before it ends",
    )
    queue: str | None = Field(
        default=None, description="queue or partition; left out: the site's default"
    )
    account: str | None = Field(default=None, description="that the jobs are charged to")
    interface: str | None = Field(
        default=None, description="network that jobs reach this machine by, such as ib0"
    )
    port: int = Field(
        default=0,
        ge=0,
        le=65_535,
        description="of the scheduler on this machine, where a firewall lets few through; 0: any",
    )
    python: str | None = Field(
        default=None, description="of the workers; left out: this one, at the same path there"
    )
    log_directory: str = Field(
        default="pixelmill-jobs",
        description="what jobs print, and their keys for the run; on a disk that they share with "
        "this machine, from the working directory",
    )
    directives: tuple[str, ...] = Field(
        default=(),
        description="more lines of the job's head, without #SBATCH or #PBS, such as "
        "--constraint=a100",
    )
    prologue: tuple[str, ...] = Field(
        default=(),
        description="lines of shell before the workers start, such as `module load python`",
    )

    @property
    def num_workers(self) -> int:
        """Of a job."""
        return self.processes or self.gpus or self.cores

    @property
    def max_workers(self) -> int:
        """Of all jobs together."""
        return self.maximum * self.num_workers

    @model_validator(mode="after")
    def _a_gpu_is_for_one_worker(self) -> "JobsConfig":
        if self.gpus and self.processes is not None:
            raise ValueError("each GPU gets one worker: leave out processes")
        return self


class SlurmConfig(JobsConfig):
    """Jobs of SLURM: `cluster: slurm`."""


class PbsConfig(JobsConfig):
    """Jobs of PBS: `cluster: pbs`."""


_SECRET = re.compile(r"(?:^|_)(?:SECRET|PASSWORD|TOKEN|KEY)(?:_|$)", re.IGNORECASE)


class KubernetesConfig(_Scaled):
    """Pods of the Dask operator, one worker in each: `cluster: kubernetes`."""

    image: str = Field(description="with this version of pixelmill, of scheduler and workers")
    namespace: str | None = Field(default=None, description="left out: that of the context")
    cpu: float = Field(default=1.0, gt=0, description="cores of a worker")
    memory: ByteSize = Field(description="of a worker, such as 4GB")
    gpus: Literal[0, 1] = Field(default=0, description="of a worker")
    env: dict[str, str] = Field(default_factory=dict, description="variables of the pods")
    secrets: tuple[str, ...] = Field(
        default=(),
        description="names of Secrets whose keys become variables of the pods, such as the "
        "credentials of an object store",
    )
    claims: dict[Annotated[str, Field(pattern="^/")], str] = Field(
        default_factory=dict,
        description="PersistentVolumeClaims by the folder where workers have them, such as "
        "/images: archive",
    )
    pod: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="more of the worker's pod, in the words of Kubernetes: nodeSelector, "
        "tolerations, serviceAccountName, imagePullSecrets",
    )

    @field_validator("env")
    @classmethod
    def _has_no_secrets(cls, env: dict[str, str]) -> dict[str, str]:
        if secret := [name for name in env if _SECRET.search(name)]:
            raise ValueError(
                f"{', '.join(secret)} would be kept in every run's record: put it into a Secret, "
                "and name that in secrets"
            )
        return env

    @field_validator("pod")
    @classmethod
    def _leaves_our_parts(cls, pod: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if ours := sorted(pod.keys() & {"containers", "volumes"}):
            raise ValueError(
                f"{' and '.join(ours)} are made of image, cpu, memory, gpus, env, secrets and "
                "claims: leave them out"
            )
        return pod


class ComputeConfig(Frozen):
    """Where and with how much is scored; changes no result."""

    slurm: SlurmConfig | None = Field(default=None, description="what `cluster: slurm` starts")
    pbs: PbsConfig | None = Field(default=None, description="what `cluster: pbs` starts")
    kubernetes: KubernetesConfig | None = Field(
        default=None, description="what `cluster: kubernetes` starts"
    )
    cluster: str = Field(
        default="auto",
        description="auto | inline | local | local:<n> | cuda | tcp://host:port of a scheduler | "
        "slurm | pbs | kubernetes",
    )
    memory: ByteSize | None = Field(
        default=None,
        description="of each worker, such as 4GB: what is held ahead is cut to it, and a worker "
        "that an image takes beyond it ends itself; left out: what is held ahead is bounded still",
    )
    retries: int = Field(default=2, ge=0, description="tries again after a transient shard error")
    max_failures: str | None = Field(
        default=None,
        pattern=r"^(\d+|\d{1,2}(\.\d+)?%|100%)$",
        description="failures, or their share of the images such as 5%, after which the run is "
        "taken for broken and ends; a share counts from 100 images on; left out: never",
    )
    cost_per_hour: float | None = Field(
        default=None, ge=0, description="of one worker, in any currency: runs then tell their cost"
    )
    publish_every: int = Field(default=64, gt=0, description="receipts per publication")
    publish_seconds: float = Field(default=60.0, gt=0, description="or after this many seconds")

    @field_validator("cluster")
    @classmethod
    def _has_its_block(cls, cluster: str, info: ValidationInfo) -> str:
        # A block with faults is not there either, and is reported itself
        if cluster in info.data and info.data[cluster] is None:
            raise ValueError(
                f"cluster {cluster} is started as a block compute.{cluster} says, and there is "
                "none: docs/clusters.md has one to begin with"
            )
        return cluster


def _check_draws(number: int) -> int:
    if 0 < number < 100:
        raise ValueError(f"expected 0 for no intervals, or at least 100 draws; got {number}")
    return number


class EvaluationConfig(Frozen):
    """Where truth is, and how it is compared."""

    instances: LocalPath | None = Field(
        default=None,
        description="boxes and masks: COCO JSON, or folder of VOC XML or YOLO txt, relative to the "
        "images' parent",
    )
    semantic: LocalPath | None = Field(
        default=None, description="folder of PNG label maps named like the images"
    )
    captions: LocalPath | None = Field(default=None, description="COCO captions JSON")
    labels: LocalPath | None = Field(
        default=None, description="CSV with the columns file_name and label"
    )
    subset: LocalPath | None = Field(
        default=None,
        description="text file of the images to compare, one a line, suffix or not, such as "
        "the held-out list that training writes; left out: all of the truth",
    )
    class_names: dict[str, str] = Field(
        default_factory=dict, description="model class name -> truth class name where they differ"
    )
    void: int = Field(default=255, ge=0, le=65_535, description="label value that is not scored")
    membranes: str | None = Field(
        default=None,
        description="class of label maps that parts cells: also ISBI 2012's pixel, Rand and "
        "warping errors of what lies between",
    )
    iou_type: Literal["auto", "bbox", "segm"] = Field(
        default="auto", description="auto: boxes, and masks where model and truth have them"
    )
    bootstrap: Annotated[int, AfterValidator(_check_draws)] = Field(
        default=1000,
        ge=0,
        le=100_000,
        description="draws of images for the 95 % intervals of the headline numbers; 0: none",
    )


Outcome = Literal["complete", "quarantine", "out_of_time", "unhealthy", "failed"]


class NotifyConfig(Frozen):
    """Who is told how a night went. Secrets stay in the environment: no record has them."""

    url_variable: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="environment variable that holds a webhook (https://...), or any URL of "
        "Apprise: slack://, mailtos://, pagerduty://, ntfy://, ...",
    )
    command: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="program and arguments; it gets the notice as JSON on its standard input",
    )
    outcomes: tuple[Outcome, ...] = Field(
        default=("quarantine", "out_of_time", "unhealthy", "failed"),
        min_length=1,
        description="outcomes that are told",
    )

    @model_validator(mode="after")
    def _is_one_of_both(self) -> "NotifyConfig":
        if (self.url_variable is None) == (self.command is None):
            raise ValueError("name either url_variable or command")
        return self


class NightlyConfig(Frozen):
    """What `pixelmill nightly` needs beside what `score` does."""

    store: str | None = Field(
        default=None, description="where predictions go; left out: the command's --out"
    )
    collection: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="name of the images in the store; left out: the folder's",
    )
    days: int | None = Field(
        default=None,
        gt=0,
        description="score only images whose paths have a date of the last so many days, or none "
        "(see backfill.pattern): after a change of models the archive is left to the backfill; "
        "left out: all that is missing",
    )
    notify: tuple[NotifyConfig, ...] = Field(default=(), description="who is told")


class HealthConfig(Frozen):
    """When a night is unlike those before it."""

    nights: int = Field(default=14, gt=0, description="earlier nights that make the baseline")
    min_images: int = Field(
        default=50, gt=0, description="of the night, and of the baseline; fewer are not compared"
    )
    psi_warn: float = Field(
        default=0.1, gt=0, description="population stability index that is told"
    )
    psi_alarm: float = Field(default=0.25, gt=0, description="and that is an alarm")
    failures_warn: Fraction = Field(
        default=0.01, description="share of the images that failed that is told"
    )
    failures_alarm: Fraction = Field(default=0.05, description="and that is an alarm")


class Gate(Frozen):
    """Bounds of a measure; at least one."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> "Gate":
        if self.min is None and self.max is None:
            raise ValueError("a gate needs min, max or both")
        return self


class CanaryConfig(Frozen):
    """A sample that a backfill scores first, and compares with the current model."""

    images: int = Field(default=200, ge=0, description="of all parts in proportion; 0: no canary")
    gates: dict[str, Gate] = Field(
        default_factory=dict,
        description="bounds of the measures of `pixelmill compare`, by name; where one does not "
        "hold, the backfill ends; none: no canary",
    )


class BackfillConfig(Frozen):
    """How an archive is gone through."""

    pattern: str | None = Field(
        default=None,
        description="where the date is in a path: %Y, %m, %d, and * within a name, such as "
        "'cam*/%Y/%j'; left out: the first that looks like one",
    )
    canary: CanaryConfig = Field(default_factory=CanaryConfig)


class RunConfig(Frozen):
    """A whole run: what is scored, by which models, where, and against what truth."""

    name: str = Field(description="of the preset")
    description: str = Field(default="", description="one line for `pixelmill config list`")
    images: str | None = Field(
        default=None, description="default folder or URL where the command names none"
    )
    models: tuple[ModelConfig, ...] = Field(min_length=1, description="all fed by one decode")
    ingest: IngestConfig = Field(default_factory=IngestConfig)
    shard: ShardConfig = Field(default_factory=ShardConfig)
    compute: ComputeConfig = Field(default_factory=ComputeConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    health: HealthConfig = Field(default_factory=HealthConfig)
    nightly: NightlyConfig = Field(default_factory=NightlyConfig)
    backfill: BackfillConfig = Field(default_factory=BackfillConfig)

    @model_validator(mode="after")
    def _names_differ(self) -> "RunConfig":
        names = [model.name for model in self.models]
        if len(set(names)) != len(names):
            raise ValueError(f"model names must differ, got {', '.join(names)}")
        return self


class PixelWeights(Frozen):
    """U-Net's map: pixels in narrow gaps between objects weigh more (its equation 2)."""

    background: str = Field(description="class between the objects; its pixels weigh more")
    border_weight: float = Field(default=10.0, gt=0, description="added where two objects touch")
    sigma: float = Field(default=5.0, gt=0, description="pixels of the original that it fades over")


class TrainConfig(Frozen):
    """Training of one model of ours on images with truth."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]*$", description="of the weights file that is written"
    )
    task: TaskName = Field(description="what is learnt")
    architecture: str = Field(description="a name that `pixelmill models` lists as trainable")
    arguments: dict[str, int | float | str | bool | tuple[int | float | str, ...] | None] = Field(
        default_factory=dict, description="keyword arguments of the architecture's builder"
    )
    preprocess: PreprocessConfig
    # Data
    images: LocalPath = Field(
        description="folder of images, or `scenes:<count>:<seed>` to render them"
    )
    truth: LocalPath | None = Field(
        default=None,
        description="boxes and masks: COCO JSON, folder of VOC XML or of YOLO txt; else folder of "
        "label maps, captions JSON, or label CSV",
    )
    classes: tuple[str, ...] | None = Field(
        default=None,
        description="semantic class names by label value, names of YOLO's numbers; others read "
        "the truth's",
    )
    split: LocalPath | None = Field(
        default=None, description="text file of the file stems to train on; left out: by fraction"
    )
    train_fraction: float = Field(
        default=0.8, gt=0, le=1, description="share of the images trained on, chosen by name hash"
    )
    data_licence: str | None = Field(
        default=None, description="of images and truth, for the model card"
    )
    workers: int = Field(
        default=0, ge=0, description="processes that read and augment; 0: the training one does"
    )
    # Schedule
    epochs: int = Field(default=20, gt=0)
    batch_size: int = Field(default=8, gt=0, description="images per step, all devices together")
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd (Nesterov's)")
    learning_rate: float = Field(default=2e-3, gt=0, description="peak of the schedule")
    weight_decay: float = Field(
        default=1e-4, ge=0, description="of matrices and kernels; vectors do not decay"
    )
    schedule: Literal["one_cycle", "cosine", "poly", "step", "constant"] = Field(
        default="one_cycle", description="learning rate over the steps, after the warm-up"
    )
    warm_up: float = Field(
        default=0.15, ge=0, lt=1, description="share of the steps on which the rate rises"
    )
    milestones: tuple[Fraction, ...] = Field(
        default=(0.67, 0.89), description="shares of the steps after which `step` lowers the rate"
    )
    decay: float = Field(default=0.1, gt=0, lt=1, description="factor of each milestone")
    max_norm: float = Field(default=10.0, gt=0, description="longer gradients are shortened to it")
    average_steps: int = Field(
        default=200, gt=0, description="the weights kept are an average over about as many steps"
    )
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="autocast if bf16")
    devices: int = Field(
        default=1, gt=0, description="GPUs, or without any CPU processes, that share each batch"
    )
    seed: int = Field(default=0, ge=0)
    init: LocalPath | None = Field(
        default=None,
        description="checkpoint whose tensors of the same name and shape are started from; a "
        "file, or `embedded:<name>` for ours",
    )
    # What is kept
    check_every: int = Field(
        default=1, ge=0, description="epochs between scorings of the images kept apart; 0: the end"
    )
    keep: Literal["best", "last"] = Field(
        default="best", description="weights of the best scoring, or of the last step"
    )
    best_by: str | None = Field(
        default=None,
        description="metric, as the summary names it; left out: the task's first of evaluate",
    )
    patience: int | None = Field(
        default=None, gt=0, description="stop after as many scorings without a better one"
    )
    # Augmentation
    horizontal_flip: bool = Field(
        default=True, description="mirror every other image; not for sentences that say left"
    )
    vertical_flip: bool = Field(default=False, description="turn every other image upside down")
    right_angles: bool = Field(default=False, description="turn by 0, 90, 180 or 270 degrees")
    elastic: float = Field(
        default=0.0, ge=0, description="strength of random bending: alpha of v2.ElasticTransform"
    )
    scale_range: tuple[PositiveNumber, PositiveNumber] = Field(
        default=(0.8, 1.25), description="random magnification, at a random place"
    )
    iou_crop: bool = Field(
        default=False, description="SSD's sampling: a window that overlaps an object enough"
    )
    crop: CanvasSize | None = Field(
        default=None,
        description="train on windows of this (height, width) instead of whole canvases",
    )
    canvas_scales: tuple[PositiveNumber, ...] = Field(
        default=(1.0,),
        min_length=1,
        description="multi-scale: each batch's canvas is enlarged by one of these, to multiples "
        "of 32 pixels",
    )
    color_jitter: float = Field(
        default=0.2, ge=0, lt=1, description="random change of brightness, contrast, saturation"
    )
    # Loss
    loss_weights: dict[str, float] = Field(
        default_factory=dict, description="factor on a term of the loss, by its name; else 1"
    )
    class_weights: Literal["balanced"] | dict[str, PositiveNumber] | None = Field(
        default=None,
        description="semantic classes by name, others 1; balanced: by their inverse frequency",
    )
    pixel_weights: PixelWeights | None = None
    hard_pixels: float | None = Field(
        default=None, gt=0, le=1, description="share of the pixels, the worst, that are learnt from"
    )

    @model_validator(mode="after")
    def _fits_the_task(self) -> "TrainConfig":
        """Refuse what would silently change nothing."""
        semantic = ("class_weights", "pixel_weights", "hard_pixels")
        if self.task != "semantic_segmentation" and (
            idle := [name for name in semantic if getattr(self, name) is not None]
        ):
            raise ValueError(f"{', '.join(idle)}: only for task: semantic_segmentation")
        if self.iou_crop and self.task not in ("detection", "instance_segmentation"):
            raise ValueError("iou_crop: only for tasks with boxes")
        if self.scale_range[0] > self.scale_range[1]:
            raise ValueError(f"scale_range must be (low, high), got {self.scale_range}")
        if self.patience is not None and not self.check_every:
            raise ValueError("patience counts scorings between epochs; set check_every")
        if self.batch_size < self.devices:
            raise ValueError(f"batch_size {self.batch_size} is less than devices {self.devices}")
        return self
