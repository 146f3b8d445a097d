"""From a model's config to its complete spec, and from the spec to a network that scores."""

import functools
import hashlib
import importlib
import importlib.resources
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pixelmill.configs.schema import ModelConfig, PreprocessConfig, TaskName
from pixelmill.models import torchvision_zoo, zoo
from pixelmill.models.checkpoint import CheckpointMeta, read_metadata
from pixelmill.models.engines.choice import (
    best_device,
    choose_engine,
    is_reference,
    pass_gate,
    settle_engine,
)
from pixelmill.models.engines.quantized import QuantizedFile, check_quantized
from pixelmill.models.interface import Network, ViewOutput
from pixelmill.models.onnx_files import external_files
from pixelmill.models.onnx_network import OnnxNetwork
from pixelmill.models.spec import ONNX, ModelSpec, default_engine
from pixelmill.models.torch_network import TorchNetwork
from pixelmill.models.trust import (
    PROGRAMS,
    TORCHSCRIPT,
    is_torchscript,
    load_program,
    load_tensors,
    refuse_program,
)
from pixelmill.models.user_decode import load_decode, read_arrays
from pixelmill.models.zoo import Architecture, ReadOut

__all__ = ["build_network", "list_architectures", "load_network", "locate_weights", "resolve_model"]

EMBEDDED = "embedded:"
TORCHVISION = "torchvision:"

# Networks kept by a process; a run has a few models, and each holds its weights
_CACHED_NETWORKS = 4


def list_architectures() -> dict[str, tuple[TaskName, ...]]:
    """All names that a config may give, with their tasks; onnx and own functions besides."""
    ours = {name: architecture.tasks for name, architecture in zoo.ARCHITECTURES.items()}
    return ours | torchvision_zoo.list_architectures()


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
    weights_file = locate_weights(weights_path)
    refuse_program(config.name, weights_file, config.architecture, trusted=config.trust)
    meta = _own_metadata(config, weights_file)
    architecture = config.architecture or _guess_architecture(config, weights_file, meta)
    _check_task(config, architecture)
    arguments, classes, preprocess = dict(config.arguments), config.classes, config.preprocess
    if meta is not None:
        arguments = meta.arguments | arguments
        classes = meta.classes if classes is None else classes
        preprocess = preprocess or meta.preprocess
    elif architecture.startswith(torchvision_zoo.PREFIX):
        entry = config.weights.removeprefix(TORCHVISION)
        entry = entry if config.weights.startswith(TORCHVISION) else "DEFAULT"
        defaults = torchvision_zoo.find_defaults(architecture, arguments, classes, entry)
        classes, arguments = defaults.classes, defaults.arguments
        preprocess = preprocess or defaults.preprocess
    decode_path, decode_function = _find_decode(config, base)
    quantized_path = _find_quantized(config, base)
    asked = ModelSpec(
        name=config.name,
        task=config.task,
        architecture=architecture,
        arguments=arguments,
        weights_path=weights_path,
        decode_path=decode_path,
        decode_function=decode_function,
        decode_sha256=_digest(Path(decode_path)) if decode_path else None,
        classes=_needed_classes(config, classes),
        vocabulary=meta.vocabulary if meta else (),
        preprocess=_needed_preprocess(config, preprocess),
        weights_sha256=_digest(weights_file),
        precision=config.precision,
        quantized_path=quantized_path,
        quantized_sha256=_digest(Path(quantized_path)) if quantized_path else None,
        batch_size=config.batch_size,
        trust=config.trust,
        **{
            name: getattr(config, name)
            for name in ("postprocess", "tiling", "augmentation")
            if hasattr(config, name)
        },
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
    weights_file = locate_weights(spec.weights_path)
    _check_digest(spec.name, weights_file, spec.weights_sha256)
    if spec.quantized_path is not None:
        _check_digest(spec.name, Path(spec.quantized_path), spec.quantized_sha256)
    if spec.architecture == ONNX:
        return OnnxNetwork(spec, str(weights_file), device)
    if spec.architecture in PROGRAMS:
        program = load_program(spec.name, weights_file, spec.architecture, trusted=spec.trust)
        return TorchNetwork(program, spec, _user_read_out(spec), device)
    architecture = _find_architecture(spec)
    module = architecture.build(**spec.arguments)
    state = load_tensors(spec.name, weights_file, trusted=spec.trust)
    try:
        module.load_state_dict(state)
    except RuntimeError as err:
        raise ValueError(
            f"{spec.name}: the weights in {str(weights_file)!r} do not fit {spec.architecture} "
            f"with {spec.arguments}: {err}"
        ) from err
    return TorchNetwork(module, spec, architecture.read_out, device)


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
    """The file behind a spec's `weights_path` on this machine.

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
    if not path.is_file():
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
    return str((base / Path(config.weights).expanduser()).resolve())


def _own_metadata(config: ModelConfig, weights_file: Path) -> CheckpointMeta | None:
    """The description in a checkpoint of ours; None for weights of others."""
    is_ours = config.architecture is None or config.architecture in zoo.ARCHITECTURES
    if weights_file.suffix != ".safetensors" or not is_ours:
        return None
    return read_metadata(weights_file)


def _guess_architecture(
    config: ModelConfig, weights_file: Path, meta: CheckpointMeta | None
) -> str:
    if meta is not None:
        return meta.architecture
    if weights_file.suffix == ".onnx":
        return ONNX
    if is_torchscript(weights_file):
        return TORCHSCRIPT
    raise ValueError(
        f"{config.name}: {weights_file.name!r} does not say what network it belongs to; set "
        "architecture:"
    )


def _check_task(config: ModelConfig, architecture: str) -> None:
    if architecture == ONNX or architecture in PROGRAMS or ":" in architecture:
        return
    known = zoo.ARCHITECTURES.get(architecture)
    found = known if known else _torchvision_architecture(config.name, architecture)
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


def _torchvision_architecture(name: str, architecture: str) -> Architecture:
    if not architecture.startswith(torchvision_zoo.PREFIX):
        raise ValueError(
            f"{name}: no architecture {architecture!r}; `pixelmill models` lists them, and "
            "`package.module:function` names one of your own"
        )
    return torchvision_zoo.architecture(architecture)


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


def _digest(path: Path) -> str:
    """Sha256 of a file; of an ONNX graph with its weights in other files, of all their digests."""
    beside = external_files(path) if path.suffix == ".onnx" else ()
    digests = [_file_digest(each) for each in (path, *beside)]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest() if beside else digests[0]


def _file_digest(path: Path) -> str:
    status = path.stat()
    return _digest_of(str(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _digest_of(path: str, size_bytes: int, modified_ns: int) -> str:
    """Sha256 of a file; read once while size and time stay."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_digest(name: str, path: Path, sha256: str | None) -> None:
    if _digest(path) != sha256:
        raise ValueError(
            f"{name}: {str(path)!r} is not the file that the run was planned with; start a new run"
        )


def _find_architecture(spec: ModelSpec) -> Architecture:
    if spec.architecture in zoo.ARCHITECTURES:
        return zoo.ARCHITECTURES[spec.architecture]
    if ":" in spec.architecture:
        return _custom_architecture(spec)
    return _torchvision_architecture(spec.name, spec.architecture)


def _custom_architecture(spec: ModelSpec) -> Architecture:
    """A user's `package.module:function` that returns a module, read by their decode function."""
    module_name, _, function_name = spec.architecture.partition(":")
    try:
        build = cast(
            "Callable[..., nn.Module]", getattr(importlib.import_module(module_name), function_name)
        )
    except (ImportError, AttributeError) as err:
        raise ImportError(
            f"{spec.name}: cannot import {function_name} from {module_name}: {err}; it must be "
            "installed on every worker"
        ) from err
    return Architecture(build=build, tasks=(spec.task,), read_out=_user_read_out(spec))


def _user_read_out(spec: ModelSpec) -> ReadOut:
    """Raw outputs to predictions by the user's decode function."""
    decode = load_decode(spec)

    def read_out(
        module: nn.Module, outputs: Any, spec: ModelSpec, canvas: tuple[int, int]
    ) -> list[ViewOutput]:
        arrays = [
            leaf.float().cpu().numpy() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)
        ]
        return read_arrays(arrays, spec, canvas, decode)

    return read_out
