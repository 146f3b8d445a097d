"""The documentation is true: commands exist, YAML is valid, the tutorial runs, the site builds."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from pixelmill.configs.load import load_config, load_train_config
from pixelmill.configs.schema import RunConfig, TrainConfig
from pixelmill.flows.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^    (pixelmill .*)$", re.MULTILINE)
INLINE = re.compile(r"`(pixelmill [a-z][^`]*)`")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|<([a-z]+://[^>\s]*)>|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


def commands_of(page: Path) -> list[str]:
    text = page.read_text()
    fenced = "\n".join(blocks(page, "", "console", "bash", "sh")).replace("\\\n", " ")
    lines = [line.removeprefix("$ ").strip() for line in fenced.splitlines()]
    found = [line for line in lines if re.match(r"pixelmill [a-z]", line)]
    return found + INDENTED.findall(BLOCK.sub("", text)) + INLINE.findall(BLOCK.sub("", text))


def links_of(page: Path) -> list[str]:
    text = re.sub(r"`[^`\n]*`", "", BLOCK.sub("", page.read_text()))
    return ["".join(groups) for groups in LINK.findall(text)]


def anchors_of(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+?)\s*$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


COMMANDS = sorted({(page, line) for page in PAGES for line in commands_of(page)})
LINKS = sorted({(page, link) for page in PAGES for link in links_of(page)})
YAML = [(page, text) for page in PAGES for text in blocks(page, "yaml")]


def name(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)[:60]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=name)
def test_a_command_and_its_options_exist(page, line):
    tokens = shlex.split(line.rstrip("…. "), comments=True)[1:]
    tokens = tokens[: next((i for i, token in enumerate(tokens) if token in "|>&;"), None)]
    path, _, _ = app.parse_commands(tokens)
    assert path, f"no such command: {line}"
    command = app
    for each in path:
        command = command[each]
    has_options = command.default_command is not None  # else it is a group, such as `models`
    arguments = command.assemble_argument_collection() if has_options else ()
    names = {each for argument in arguments for each in argument.names}
    options = {token.partition("=")[0] for token in tokens if re.match(r"--?[a-z]", token)}
    assert options <= names | {"--help"}


@pytest.mark.parametrize(("page", "text"), YAML, ids=name)
def test_yaml_is_a_valid_configuration_or_a_part_of_one(page, text):
    given: dict[str, Any] = yaml.safe_load(text)
    if set(given) <= set(RunConfig.model_fields):
        RunConfig.model_validate(load_config("demo").model_dump(exclude_unset=True) | given)
    elif set(given) <= set(TrainConfig.model_fields):
        whole = load_train_config("demo-detector").model_dump(exclude_defaults=True)
        TrainConfig.model_validate(whole | given)
    else:
        model = {"name": "a", "task": "detection", "weights": "a.safetensors"}
        RunConfig.model_validate({"name": "a", "models": [model | given]})


@pytest.mark.parametrize(("page", "link"), LINKS, ids=name)
def test_a_link_leads_somewhere(page, link):
    """Inside to a file and a heading of it; outside, which nobody can visit here, as an address."""
    url = urlsplit(link)
    if url.scheme:
        assert (url.scheme, url.username, url.port) == ("https", None, None)
        assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", url.netloc)
        return
    assert not link.startswith("/")
    target = (page.parent / url.path).resolve() if url.path else page
    # Made when the site is built, which checks it, too
    if target.is_relative_to(ROOT / "docs/reference") or target == ROOT / "docs/changelog.md":
        return
    assert target.is_relative_to(ROOT)
    assert target.exists()
    assert not url.fragment or url.fragment in anchors_of(target)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial_runs_as_it_stands(tmp_path, monkeypatch):
    """Block after block; a file's failure (exit code 3) is what the page promises."""
    monkeypatch.chdir(tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    names: dict[str, Any] = {}
    codes = []
    for language, text in BLOCK.findall((ROOT / "docs/tutorial.md").read_text()):
        if language == "python":
            exec(text, names)
        elif language == "yaml":
            Path(text.splitlines()[0].removeprefix("# ")).write_text(text)
        else:
            for line in text.splitlines():
                done = subprocess.run(
                    line,
                    shell=True,
                    env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode in (0, 3), done.stderr
                codes.append(done.returncode)
    assert codes.count(3) == 1
    assert names["failures"].path.to_list() == ["broken.jpg"]
    assert len(names["things"]) > 0
    assert names["regions"].ndim == 2


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    configuration = (tmp_path / "reference/configuration.html").read_text()
    assert "score_threshold" in configuration
    assert "pixelmill score" in (tmp_path / "reference/commands.html").read_text()
    fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', configuration)
    assert fetched == []
