"""From a model's config to its complete spec, and from the spec to a network that scores."""

import functools
import importlib.resources
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from pixelmill.configs.schema import ModelConfig, PreprocessConfig
from pixelmill.models import hugging_face, smp_zoo, timm_zoo, torchvision_zoo, zoo
from pixelmill.models.architectures import (
    find_architecture,
    guess_architecture,
    is_known_by_name,
    list_architectures,
    own_architecture,
    user_read_out,
)
from pixelmill.models.checkpoint import read_metadata
from pixelmill.models.defaults import Defaults, merge_preprocess
from pixelmill.models.digests import check_digest, file_digest, weights_digest
from pixelmill.models.engines.choice import (
    best_device,
    choose_engine,
    is_reference,
    pass_gate,
    settle_engine,
)
from pixelmill.models.engines.quantized import QuantizedFile, check_quantized
from pixelmill.models.exported import ExportedNetwork
from pixelmill.models.hub import HUB, fetch_folder, revision_of, weights_in
from pixelmill.models.hugging_face import TRANSFORMERS
from pixelmill.models.interface import Network
from pixelmill.models.onnx_network import OnnxNetwork
from pixelmill.models.spec import ONNX, ModelSpec, default_engine
from pixelmill.models.torch_network import TorchNetwork
from pixelmill.models.trust import PROGRAMS, load_program, load_tensors, refuse_program
from pixelmill.models.user_code import (
    is_file_factory,
    load_factory,
    load_registered,
    registered,
    source_digest,
)
from pixelmill.models.zoo import ReadOut

__all__ = ["build_network", "list_architectures", "load_network", "locate_weights", "resolve_model"]

EMBEDDED = "embedded:"
TORCHVISION = "torchvision:"
TIMM = "timm:"

# Networks kept by a process; a run has a few models, and each holds its weights
_CACHED_NETWORKS = 4


def resolve_model(
    config: ModelConfig, base: Path, *, device: str | None = None, num_images: int | None = None
) -> ModelSpec:
    """Find everything that a config leaves out.

    An engine other than the default one passes its parity gate here, or is replaced: see
    `pixelmill.models.engines.choice`.

    Args:
        config: of one model.
        base: folder that relative paths in the config start from.
        device: that will score, "cpu" or "cuda"; None: a GPU if this process sees one.
        num_images: planned for each process, for `engine: auto`; None: not known.

    Raises:
        ImportError: the engine is not installed.
        FileNotFoundError: weights or decode file do not exist.
        OSError: weights have to be fetched, and cannot be.
        ValueError: something is missing or does not fit together; the message says what to do.
    """
    weights_path = _find_weights(config, base)
    weights = locate_weights(weights_path)
    for path in weights_in(weights) if weights.is_dir() else (weights,):
        refuse_program(config.name, path, config.architecture, trusted=config.trust)
    known, architecture, vocabulary = _find_known(config, weights)
    classes = _needed_classes(config, known.classes)
    preprocess = _needed_preprocess(config, known.preprocess)
    code = _find_code(config, base, architecture)
    decode_path, decode_function = _find_decode(config, base)
    quantized_path = _find_quantized(config, base)
    asked = ModelSpec(
        name=config.name,
        task=config.task,
        architecture=code.architecture,
        arguments=known.arguments,
        weights_path=weights_path,
        weights_sha256=weights_digest(weights),
        revision=revision_of(weights),
        code_path=code.path,
        code_sha256=code.sha256,
        decode_path=decode_path,
        decode_function=decode_function,
        decode_sha256=file_digest(Path(decode_path)) if decode_path else None,
        classes=classes,
        vocabulary=vocabulary,
        preprocess=preprocess,
        precision=config.precision,
        quantized_path=quantized_path,
        quantized_sha256=file_digest(Path(quantized_path)) if quantized_path else None,
        batch_size=config.batch_size,
        trust=config.trust,
        **_find_postprocess(config, known.postprocess),
    )
    device = device or best_device()
    engine = config.engine
    if engine == "auto":
        reference = asked.model_copy(update={"precision": "fp32"})
        engine = choose_engine(reference, build_network, device=device, num_images=num_images)
    if engine is not None:
        asked = asked.model_copy(update={"engine": engine})
    _check_engine(asked)
    if quantized_path:
        check_quantized(QuantizedFile(Path(quantized_path)), asked)
    return settle_engine(asked, build_network, device=device)


def build_network(spec: ModelSpec, device: str = "cpu") -> Network:
    """Make a network that scores, with its weights loaded.

    Raises:
        FileNotFoundError: the weights are not on this machine.
        ValueError: they are not those that the spec was made with, or do not fit the architecture.
        ImportError: an optional dependency is missing.
    """
    weights = locate_weights(spec.weights_path)
    check_digest(spec.name, weights, spec.weights_sha256)
    if spec.quantized_path is not None:
        check_digest(spec.name, Path(spec.quantized_path), spec.quantized_sha256)
    if spec.architecture == ONNX:
        return OnnxNetwork(spec, str(weights), device)
    module, read_out = _build_module(spec, weights)
    return TorchNetwork(module, spec, read_out, device)


def _build_module(spec: ModelSpec, weights: Path) -> tuple[nn.Module, ReadOut]:
    if spec.architecture in PROGRAMS:
        program = load_program(spec.name, weights, spec.architecture, trusted=spec.trust)
        if isinstance(program, ExportedNetwork):
            program.check_canvases(spec.preprocess.canvases)
        return program, user_read_out(spec)
    if spec.architecture == TRANSFORMERS:
        return hugging_face.load_module(spec, weights), hugging_face.read_out(spec.task)
    if ":" in spec.architecture:
        architecture = own_architecture(spec)
    else:
        architecture = find_architecture(spec.name, spec.architecture)
    _check_code(spec)
    module = architecture.build(**spec.arguments)
    state = _load_state(spec, weights)
    try:
        module.load_state_dict(state)
    except RuntimeError as err:
        raise ValueError(
            f"{spec.name}: the weights in {str(weights)!r} do not fit {spec.architecture} "
            f"with {spec.arguments}: {err}"
        ) from err
    return module, architecture.read_out


def _load_state(spec: ModelSpec, weights: Path) -> Mapping[str, Tensor]:
    """Of one file, or of all that a large network's weights are spread over."""
    files = weights_in(weights) if weights.is_dir() else (weights,)
    state: dict[str, Tensor] = {}
    for path in files:
        state.update(load_tensors(spec.name, path, trusted=spec.trust))
    return state


def load_network(spec: ModelSpec, device: str = "cpu") -> Network:
    """`build_network`, through its gate, kept for the next shard; safe to call from threads.

    Raises:
        ValueError: the engine does not answer here as it did where the run was planned.
    """
    with _lock:
        return _cached_network(spec.model_dump_json(), device)


_lock = threading.Lock()


@functools.lru_cache(maxsize=_CACHED_NETWORKS)
def _cached_network(spec_json: str, device: str) -> Network:
    spec = ModelSpec.model_validate_json(spec_json)
    network = build_network(spec, device)
    if not is_reference(spec):
        network.gate = pass_gate(spec, build_network, device=device, network=network)
        if not network.gate.passed:
            raise ValueError(
                f"{spec.name}: on this machine {network.engine_used} does not answer as "
                f"{default_engine(spec.architecture)} fp32 does: {'; '.join(network.gate.faults)}; "
                "leave out engine: and precision: in the config and start a new run, or score on "
                "machines of one kind"
            )
    return network


def locate_weights(weights_path: str) -> Path:
    """The file or folder behind a spec's `weights_path` on this machine.

    Raises:
        FileNotFoundError: there is none.
    """
    if weights_path.startswith(EMBEDDED):
        name = weights_path.removeprefix(EMBEDDED)
        folder = importlib.resources.files("pixelmill.models.weights")
        path = Path(str(folder.joinpath(f"{name}.safetensors")))
        if not path.is_file():
            known = sorted(entry.stem for entry in path.parent.glob("*.safetensors"))
            raise FileNotFoundError(
                f"no embedded weights {name!r}; there are: {', '.join(known) or 'none'}"
            )
        return path
    path = Path(weights_path)
    if not path.exists():
        raise FileNotFoundError(
            f"no weights at {weights_path!r}; every worker needs them at the same path as the "
            "planner, on a shared disk for instance"
        )
    return path


def _find_weights(config: ModelConfig, base: Path) -> str:
    """What to put into the spec: embedded weights by name, since each worker has its own copy."""
    if config.weights.startswith(EMBEDDED):
        return config.weights
    if config.weights.startswith(TORCHVISION):
        if not (config.architecture or "").startswith(torchvision_zoo.PREFIX):
            raise ValueError(
                f"{config.name}: weights {config.weights!r} need architecture: torchvision/"
                f"<builder>, got {config.architecture!r}"
            )
        entry = config.weights.removeprefix(TORCHVISION)
        return str(torchvision_zoo.download_weights(cast("str", config.architecture), entry))
    if config.weights.startswith(TIMM):
        return str(fetch_folder(_name_timm_weights(config)))
    if config.weights.startswith(HUB):
        return str(fetch_folder(config.weights))
    return str((base / Path(config.weights).expanduser()).resolve())


def _name_timm_weights(config: ModelConfig) -> str:
    architecture = config.architecture or ""
    if not architecture.startswith(timm_zoo.PREFIX) or config.weights != f"{TIMM}DEFAULT":
        raise ValueError(
            f"{config.name}: expected weights: {TIMM}DEFAULT with architecture: "
            f"{timm_zoo.PREFIX}<model> or {timm_zoo.PREFIX}<model>.<weights>, got "
            f"{config.weights!r} with {config.architecture!r}"
        )
    return timm_zoo.name_weights(architecture)


class _Known(NamedTuple):
    defaults: Defaults
    architecture: str
    vocabulary: tuple[str, ...] = ()


def _find_known(config: ModelConfig, weights: Path) -> _Known:
    """What the weights say, or the library that they are of, under what the config says."""
    is_ours = config.architecture is None or config.architecture in zoo.ARCHITECTURES
    if weights.suffix == ".safetensors" and is_ours:
        meta = read_metadata(weights)
        _check_task(config, meta.architecture)
        classes = meta.classes if config.classes is None else config.classes
        preprocess = merge_preprocess(meta.preprocess, config.preprocess)
        defaults = Defaults(classes, meta.arguments | config.arguments, preprocess)
        return _Known(defaults, meta.architecture, meta.vocabulary)
    architecture = config.architecture or guess_architecture(config.name, weights)
    _check_task(config, architecture)
    defaults = _ask_library(config, architecture, weights)
    preprocess = merge_preprocess(defaults.preprocess, config.preprocess)
    return _Known(defaults._replace(preprocess=preprocess), architecture)


def _ask_library(config: ModelConfig, architecture: str, weights: Path) -> Defaults:
    arguments, classes = dict(config.arguments), config.classes
    folder = weights if weights.is_dir() else None
    if architecture.startswith(torchvision_zoo.PREFIX):
        entry = config.weights.removeprefix(TORCHVISION)
        entry = entry if config.weights.startswith(TORCHVISION) else "DEFAULT"
        return torchvision_zoo.find_defaults(architecture, arguments, classes, entry)
    if architecture.startswith(timm_zoo.PREFIX):
        return timm_zoo.find_defaults(architecture, arguments, classes, folder)
    if architecture.startswith(smp_zoo.PREFIX):
        return smp_zoo.find_defaults(architecture, arguments, classes, folder, config.preprocess)
    if architecture == TRANSFORMERS:
        if folder is None:
            raise ValueError(
                f"{config.name}: architecture: {TRANSFORMERS} needs a folder that save_pretrained "
                f"wrote, or {HUB}<owner>/<name>, as weights:, got {config.weights!r}"
            )
        return hugging_face.find_defaults(
            config.name, config.task, folder, classes, config.preprocess
        )
    return Defaults(classes, arguments, config.preprocess)


class _Code(NamedTuple):
    """Where a network's builder is that is neither ours nor of a library that we know.

    Attributes:
        architecture: for the spec, without places of this machine.
        path: of the user's file.
        sha256: of the source.
    """

    architecture: str
    path: str | None = None
    sha256: str | None = None


def _find_code(config: ModelConfig, base: Path, architecture: str) -> _Code:
    if is_file_factory(architecture):
        file_name, _, function = architecture.rpartition(":")
        path = (base / Path(file_name).expanduser()).resolve()
        if not path.is_file():
            raise FileNotFoundError(f"{config.name}: no Python file at {str(path)!r}")
        if not config.trust:
            raise ValueError(
                f"{config.name}: {architecture} is code that scoring would run. If you trust "
                "whoever wrote it, set trust: true (or --trust)"
            )
        return _Code(f"{path.name}:{function}", str(path), file_digest(path))
    return _Code(architecture, sha256=_source_digest(config.name, architecture))


def _source_digest(name: str, architecture: str) -> str | None:
    """Of a builder that is the user's or another package's; None for all others."""
    if ":" in architecture:
        return source_digest(load_factory(name, architecture))
    entry = registered().get(architecture) if architecture not in zoo.ARCHITECTURES else None
    return source_digest(load_registered(entry).build) if entry else None


def _check_code(spec: ModelSpec) -> None:
    """Refuse another version of a package's code than that of the plan; a file's is looked at."""
    if spec.code_sha256 is None or spec.code_path is not None:
        return
    if _source_digest(spec.name, spec.architecture) != spec.code_sha256:
        raise ValueError(
            f"{spec.name}: {spec.architecture} is another version here than where the run was "
            "planned; install the same one on every worker, or start a new run"
        )


def _find_postprocess(config: ModelConfig, known: Mapping[str, Any]) -> dict[str, Any]:
    """What the config says of the stages after the network, and else what suits it."""
    found = {
        name: getattr(config, name)
        for name in ("postprocess", "tiling", "augmentation")
        if hasattr(config, name)
    }
    asked = found.get("postprocess")
    if asked is not None:
        unsaid = {
            name: value for name, value in known.items() if name not in asked.model_fields_set
        }
        found["postprocess"] = asked.model_copy(update=unsaid)
    return found


def _check_task(config: ModelConfig, architecture: str) -> None:
    if not is_known_by_name(architecture):
        return
    found = find_architecture(config.name, architecture)
    if config.task not in found.tasks:
        raise ValueError(
            f"{config.name}: {architecture} can do {', '.join(found.tasks)}, not {config.task}"
        )


def _check_engine(spec: ModelSpec) -> None:
    """Refuse what an engine cannot run at all, whatever the machine."""
    if spec.architecture == ONNX and spec.engine in ("torch", "torch-compile"):
        raise ValueError(
            f"{spec.name}: {spec.engine} runs no .onnx file; set engine: onnxruntime or openvino"
        )
    if spec.engine == "onnxruntime" and spec.precision != "fp32":
        raise ValueError(f"{spec.name}: onnxruntime computes in fp32, got {spec.precision}")
    if spec.architecture in PROGRAMS and spec.engine != "torch":
        raise ValueError(f"{spec.name}: a {spec.architecture} file runs with engine: torch only")
    if spec.architecture == TRANSFORMERS and spec.task == "captioning" and spec.engine != "torch":
        raise ValueError(f"{spec.name}: captions of transformers are made with engine: torch only")


def _find_decode(config: ModelConfig, base: Path) -> tuple[str | None, str | None]:
    if config.decode is None:
        return None, None
    file_name, separator, function = config.decode.rpartition(":")
    if not separator or not function.isidentifier():
        raise ValueError(f"{config.name}: decode must be file.py:function, got {config.decode!r}")
    path = (base / Path(file_name).expanduser()).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"{config.name}: no decode file at {str(path)!r}")
    return str(path), function


def _find_quantized(config: ModelConfig, base: Path) -> str | None:
    if config.quantized is None:
        return None
    path = (base / Path(config.quantized).expanduser()).resolve()
    if not path.is_file():
        raise FileNotFoundError(
            f"{config.name}: no file of int8 graphs at {str(path)!r}; `pixelmill models quantize` "
            "writes one"
        )
    return str(path)


def _needed_classes(config: ModelConfig, classes: tuple[str, ...] | None) -> tuple[str, ...]:
    if config.task == "captioning":
        return ()
    if not classes:
        raise ValueError(f"{config.name}: the weights do not name their classes; set classes:")
    return classes


def _needed_preprocess(
    config: ModelConfig, preprocess: PreprocessConfig | None
) -> PreprocessConfig:
    if preprocess is None:
        raise ValueError(
            f"{config.name}: the weights do not say how images are prepared; set preprocess:"
        )
    return preprocess
