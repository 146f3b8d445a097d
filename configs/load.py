"""YAML files as checked configurations; a bad file reports every fault at once, with its line."""

import copy
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pixelmill.configs.schema import Frozen, RunConfig, TrainConfig

__all__ = [
    "ConfigError",
    "Fault",
    "find_config",
    "list_presets",
    "load_config",
    "load_train_config",
]

PRESETS = Path(__file__).parent
TRAIN_PRESETS = PRESETS / "train"

_FILE_AND_FUNCTION = re.compile(r"^[^:]+\.py:")

Config = TypeVar("Config", bound=Frozen)
KeyPath = tuple[str | int, ...]
Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a file; `line` counts from 1, and is 0 where there is no line."""

    line: int
    key_path: str
    problem: str
    remedy: str | None = None

    def __str__(self) -> str:
        place = f"{self.key_path}: " if self.key_path else ""
        return place + self.problem + (f"; {self.remedy}" if self.remedy else "")


class ConfigError(ValueError):
    """A configuration cannot be used; `faults` has all that is wrong with it."""

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        lines = [f"{source} has {count}:"]
        lines += [f"  {source}:{fault.line}: {fault}" for fault in self.faults if fault.line]
        lines += [f"  {fault}" for fault in self.faults if not fault.line]
        super().__init__("\n".join(lines))


def load_config(name_or_path: str | Path) -> RunConfig:
    """Load a run's configuration.

    Relative paths (`images`, `weights`, `quantized`, `decode`, a file in `architecture`,
    `evaluation.subset`) start from the folder of the file, in a preset from the working directory;
    they are absolute in the result. Truth paths stay as they are: they start from the folder that
    holds the images.

    Args:
        name_or_path: a preset's name, such as `demo`, or a YAML file.

    Raises:
        ConfigError: with every fault of the file.
    """
    path = find_config(name_or_path)
    config, base = _load(path, RunConfig), _base(path)
    models = tuple(
        model.model_copy(
            update={
                "weights": _absolute(model.weights, base),
                "decode": model.decode and _absolute(model.decode, base),
                "quantized": model.quantized and _absolute(model.quantized, base),
                "architecture": model.architecture and _absolute_code(model.architecture, base),
            }
        )
        for model in config.models
    )
    images = config.images and _absolute(config.images, base)
    subset = config.evaluation.subset and _absolute(config.evaluation.subset, base)
    evaluation = config.evaluation.model_copy(update={"subset": subset})
    store = config.nightly.store and _absolute(config.nightly.store, base)
    nightly = config.nightly.model_copy(update={"store": store})
    return config.model_copy(
        update={
            "models": models,
            "images": images,
            "evaluation": evaluation,
            "nightly": nightly,
        }
    )


def load_train_config(name_or_path: str | Path) -> TrainConfig:
    """Load a training configuration; relative paths become absolute as in `load_config`.

    Raises:
        ConfigError: with every fault of the file.
    """
    path = find_config(name_or_path, TRAIN_PRESETS)
    config, base = _load(path, TrainConfig), _base(path)
    places = {
        name: _absolute(value, base)
        for name in ("images", "truth", "split", "init")
        if (value := getattr(config, name)) is not None
    }
    return config.model_copy(update=places)


def list_presets(folder: Path = PRESETS) -> list[str]:
    """Names of the presets in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_config(name_or_path: str | Path, folder: Path = PRESETS) -> Path:
    """Path of a preset or of the YAML file itself.

    Raises:
        ConfigError: neither is there; the nearest preset is named.
    """
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")) or "/" in text:
        path = Path(text).expanduser()
        if path.is_file():
            return path.resolve()
        raise ConfigError(text, [Fault(0, "", f"no such file: {path.resolve()}")])
    preset = folder / f"{text}.yaml"
    if preset.is_file():
        return preset
    presets = list_presets(folder)
    remedy = _nearest(text, presets) or f"there are {', '.join(presets)}; or name a .yaml file"
    raise ConfigError(text, [Fault(0, "", f"no preset is named {text!r}", remedy)])


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but `1e-3` is a number."""


_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _load(path: Path, schema: type[Config]) -> Config:
    source = _shown(path)
    root, data = _read(path, source)
    faults = [*_duplicate_keys(root), *_schema_faults(root, data, schema)]
    if faults:
        raise ConfigError(source, sorted(faults, key=lambda fault: fault.line))
    return schema.model_validate(data)


def _read(path: Path, source: str) -> tuple[yaml.Node, dict[str, Any]]:
    loader = _Loader(path.read_bytes())
    try:
        root = loader.get_single_node()
        if root is None:
            raise ConfigError(source, [Fault(1, "", "the file is empty")])
        data = loader.construct_document(root)
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(source, [Fault(line, "", f"not YAML: {err.problem}")]) from err
    except yaml.YAMLError as err:
        raise ConfigError(source, [Fault(1, "", f"not YAML: {err}")]) from err
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        problem = f"expected keys and values, got a {type(data).__name__}"
        raise ConfigError(source, [Fault(1, "", problem)])
    return root, data


def _duplicate_keys(node: yaml.Node, path: KeyPath = ()) -> Iterator[Fault]:
    if isinstance(node, yaml.MappingNode):
        first_line: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            here = (*path, key.value)
            if key.value in first_line:
                problem = f"said twice, first in line {first_line[key.value]}"
                yield Fault(line, _dotted(here), problem, "keep one of them")
            first_line.setdefault(key.value, line)
            yield from _duplicate_keys(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _duplicate_keys(value, (*path, index))


def _schema_faults(root: yaml.Node, data: dict[str, Any], schema: type[Frozen]) -> Iterator[Fault]:
    """Pydantic's errors, one per place, with line and remedy."""
    document = schema.model_json_schema()
    by_path: dict[KeyPath, list[ErrorDetails]] = {}
    for error in _errors(schema, data, document):
        by_path.setdefault(_path_in_file(error, data), []).append(error)
    misspelt = {
        (*path[:-1], match)
        for path, errors in by_path.items()
        if errors[0]["type"] == "extra_forbidden"
        for match in _close(str(path[-1]), _properties(document, path[:-1], data))
    }
    for path, errors in by_path.items():
        kind = errors[0]["type"]
        if kind == "missing" and path in misspelt:
            continue  # the misspelt key is the fault, and is reported
        if kind == "too_short" and errors[0]["input"]:
            continue  # pydantic counts the sound items only; the unsound one is reported
        yield _fault(path, errors, root, data, document)


def _errors(schema: type[Frozen], data: dict[str, Any], document: Schema) -> list[ErrorDetails]:
    """Pydantic's errors; a model whose task is wrong is checked as the task that was meant."""
    try:
        schema.model_validate(data)
    except ValidationError as err:
        errors = err.errors(include_url=False)
    else:
        return []
    wrong = [error for error in errors if error["type"].startswith("union_tag_")]
    if not wrong:
        return errors
    repaired = copy.deepcopy(data)
    for error in wrong:
        tags = _tags(document, error["loc"])
        guess = next(iter(_close(str(error.get("ctx", {}).get("tag")), tags)), None)
        _at(repaired, error["loc"][:-1])[error["loc"][-1]] |= {"task": guess or tags[0]}
    return [*wrong, *_errors(schema, repaired, document)]


def _at(data: Any, path: KeyPath) -> Any:
    for step in path:
        data = data[step]
    return data


def _fault(
    path: KeyPath,
    errors: list[ErrorDetails],
    root: yaml.Node,
    data: dict[str, Any],
    document: Schema,
) -> Fault:
    error = errors[0]
    kind, context = error["type"], error.get("ctx", {})
    line, where = _line(root, path), _dotted(path)
    got = f", got {_short(error['input'])}"
    if kind == "extra_forbidden":
        known = _properties(document, path[:-1], data)
        remedy = _nearest(str(path[-1]), known) or f"known keys: {', '.join(known)}"
        return Fault(line, where, "no such key", remedy)
    if kind == "missing":
        meaning = _properties(document, path[:-1], data).get(str(path[-1]), {}).get("description")
        return Fault(line, where, "required, but not there", meaning)
    if kind == "union_tag_not_found":
        tags = _tags(document, path)
        return Fault(line, f"{where}.task", "required, but not there", f"one of {', '.join(tags)}")
    if kind == "union_tag_invalid":
        tags, tag = _tags(document, path), str(context["tag"])
        remedy = _nearest(tag, tags) or f"one of {', '.join(tags)}"
        line = _line(root, (*path, "task"))
        return Fault(line, f"{where}.task", f"no such task: {tag!r}", remedy)
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"])
        nearest = _nearest(str(error["input"]), allowed)
        return Fault(line, where, f"expected {context['expected']}{got}", nearest)
    if kind == "value_error":
        return Fault(line, where, str(context["error"]))
    if kind == "string_type" and isinstance(error["input"], bool):
        return Fault(line, where, f"expected text{got}", "YAML reads yes, no, on, off so: quote it")
    messages = (each["msg"].replace("Input should be ", "expected ") for each in errors)
    problem = " or ".join(dict.fromkeys(_lower_first(message) for message in messages))
    return Fault(line, where, problem.replace(" or expected ", " or ") + got)


def _path_in_file(error: ErrorDetails, data: object) -> KeyPath:
    """An error's location without the union tags and type names that the file does not have."""
    path: list[str | int] = []
    for index, step in enumerate(error["loc"]):
        is_missing_key = error["type"] == "missing" and index == len(error["loc"]) - 1
        if isinstance(data, Mapping) and (step in data or is_missing_key):
            path.append(step)
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            path.append(step)
            data = data[step]
    return tuple(path)


def _line(node: yaml.Node, path: KeyPath) -> int:
    """Line of the key at `path`, or of the nearest thing above it that is there."""
    line: int = node.start_mark.line + 1
    for step in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(step)), None)
            if found is None:
                return line
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            if step >= len(node.value):
                return line
            node = node.value[step]
            line = node.start_mark.line + 1
    return line


def _subschema(document: Schema, path: KeyPath, data: object) -> Schema:
    """The JSON schema at `path`; of a union of models, the one that the file's `task` names."""
    schema = _resolve(document, document, data)
    for step in path:
        if isinstance(step, int):
            data = data[step] if isinstance(data, Sequence) and step < len(data) else None
            schema = _resolve(document, schema.get("items", {}), data)
        else:
            data = data.get(step) if isinstance(data, Mapping) else None
            schema = _resolve(document, schema.get("properties", {}).get(step, {}), data)
    return schema


def _resolve(document: Schema, schema: Schema, data: object) -> Schema:
    if "discriminator" in schema:
        task = data.get("task") if isinstance(data, Mapping) else None
        schema = {"$ref": schema["discriminator"]["mapping"].get(task, "")}
    for choice in schema.get("anyOf", ()):  # `X | None`
        if "$ref" in choice:
            schema = choice
    if "$ref" in schema:
        return dict(document["$defs"].get(str(schema["$ref"]).rpartition("/")[2], {}))
    return schema


def _properties(document: Schema, path: KeyPath, data: object) -> dict[str, Schema]:
    return dict(_subschema(document, path, data).get("properties", {}))


def _tags(document: Schema, path: KeyPath) -> list[str]:
    parent = _subschema(document, path[:-1], None)
    return list(parent["items"]["discriminator"]["mapping"])


def _close(word: str, known: Sequence[str] | Mapping[str, Any]) -> list[str]:
    return difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)


def _nearest(word: str, known: Sequence[str] | Mapping[str, Any]) -> str | None:
    return next((f"did you mean {match!r}?" for match in _close(word, known)), None)


def _base(path: Path) -> Path:
    """Where a file's relative paths start: an installed preset's own folder would mean nothing."""
    return Path.cwd() if path.is_relative_to(PRESETS) else path.parent


def _absolute(place: str, base: Path) -> str:
    """`place` from `base`, unless it is a URL or one of our `kind:name` references."""
    scheme = re.match(r"^[a-z][a-z0-9+.-]*:", place)
    if scheme and not _FILE_AND_FUNCTION.match(place):
        return place
    return str((base / Path(place).expanduser()).resolve())


def _absolute_code(architecture: str, base: Path) -> str:
    """`file.py:function` from `base`; every other architecture is a name."""
    return _absolute(architecture, base) if _FILE_AND_FUNCTION.match(architecture) else architecture


def _dotted(path: KeyPath) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
