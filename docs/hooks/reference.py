"""Pages that are made from the code when the site is built: commands, configuration, Python API."""

import re
import types
import typing
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parents[2]
# Packages whose modules a user imports, and what each is for
API = {
    "tasks.store": "Reading and keeping predictions",
    "tasks.evaluation": "Comparing predictions with truth",
    "tasks.comparison": "Comparing predictions with predictions",
    "tasks.training": "Training",
    "tasks.metrics": "Metrics as pure functions",
    "tasks.report": "Reports",
    "tasks": "The steps of a run",
    "models.ops": "Boxes, masks, anchors, suppression as pure tensor functions",
    "models": "Architectures, losses and matching",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages, and README's neighbours that belong to the site."""
    for path, content in pages():
        files.append(File.generated(config, path, content=content))
    return files


def pages() -> Iterator[tuple[str, str]]:
    """(path in the site, markdown) of every made page."""
    yield "reference/commands.md", _commands()
    yield "reference/configuration.md", _configuration()
    yield "changelog.md", (ROOT / "CHANGELOG.md").read_text()
    for package, title in API.items():
        yield f"reference/{package.replace('.', '-')}.md", _api(package, title)


def _commands() -> str:
    from pixelmill.flows.cli import app

    text = app.generate_docs().replace("# pixelmill\n", "# Commands\n", 1)
    return re.sub(r"## Table of Contents\n.*?(?=\*\*Commands\*\*)", "", text, flags=re.DOTALL)


def _configuration() -> str:
    from pixelmill.configs.schema import RunConfig, TrainConfig

    lines = [
        "# Configuration",
        "",
        "Every field of a run's YAML and of a training's, with its type and default; made from "
        "`configs/schema.py`. `pixelmill config show PRESET` prints one in full.",
        "",
    ]
    seen: list[type[BaseModel]] = []
    for root in (RunConfig, TrainConfig):
        for model in _nested(root):
            if model not in seen:
                seen.append(model)
                lines += _fields(model)
    return "\n".join(lines)


def _nested(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for each in _models_in(field.annotation):
            yield from _nested(each)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _fields(model: type[BaseModel]) -> list[str]:
    lines = [f"## {model.__name__}", "", (model.__doc__ or "").strip(), ""]
    lines += ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        meaning = field.description or _summary(field.annotation)
        cells = (f"`{name}`", _type(field.annotation), _default(field), meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def _summary(annotation: Any) -> str:
    """Of a block of fields, what its class says of itself."""
    is_block = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return (annotation.__doc__ or "").partition("\n")[0] if is_block else ""


def _type(annotation: Any) -> str:
    """As a reader of YAML would say it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(each) for each in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_type(arguments[0])}"
        return f"[{', '.join(_type(each) for each in arguments)}]"
    if origin is not None:
        return f"map of {_type(arguments[0])} to {_type(arguments[1])}"
    return str(annotation.__name__)


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined or isinstance(default, BaseModel):
        return ""
    if isinstance(default, timedelta):
        return f"`{default}`"
    return f"`{default!r}`" if default not in ((), {}, None, "") else ""


def _api(package: str, title: str) -> str:
    folder = ROOT / package.replace(".", "/")
    modules = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    lines = [f"# {title}", ""]
    lines += [f"::: pixelmill.{package}.{module}" for module in modules]
    return "\n\n".join(lines) + "\n"
