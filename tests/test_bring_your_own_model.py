"""Every code block of docs/bring-your-own-model.md is run, section by section."""

import re
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
import torch

from pixelmill.configs.load import load_config
from pixelmill.models.build import resolve_model
from pixelmill.models.user_code import load_registered
from pixelmill.tasks.check_model import check_model

PAGE = (Path(__file__).parents[1] / "docs" / "bring-your-own-model.md").read_text()
SECTIONS = {part.splitlines()[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = {
    "timm": "timm",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "Hugging Face": "transformers",
    "ONNX": "onnxscript",
}


def blocks(text: str) -> list[tuple[str, str]]:
    return [(match[1], match[2]) for match in BLOCK.finditer(text)]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder that Python imports from, with the captioner that the page does not make."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PIXELMILL_CACHE", str(tmp_path / "cache"))
    before = set(sys.modules)
    torch.manual_seed(0)
    yield tmp_path
    for name in {"net", "my_nets"} - before:
        sys.modules.pop(name, None)
    load_registered.cache_clear()


def save_captioner(folder: Path) -> None:
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat"]
    (folder.parent / "words.txt").write_text("\n".join(words))
    small = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 6, "encoder_hidden_size": 12, "bos_token_id": 2, "sep_token_id": 3}
    config = transformers.BlipConfig(
        text_config=small | text | {"eos_token_id": 3, "pad_token_id": 0},
        vision_config=small | {"image_size": 32, "patch_size": 16},
    )
    transformers.BlipForConditionalGeneration(config).save_pretrained(folder)
    transformers.BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    transformers.BertTokenizer(str(folder.parent / "words.txt")).save_pretrained(folder)


def install(toml: str, folder: Path) -> None:
    """What pip does with a package's entry points."""
    entries = tomllib.loads(toml)["project"]["entry-points"]
    about = folder / "my_nets-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-nets\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n" + "\n".join(f"{name} = {value}" for name, value in named.items())
        for group, named in entries.items()
    ]
    (about / "entry_points.txt").write_text("\n".join(lines))


@pytest.mark.slow
@pytest.mark.parametrize("title", [title for title in SECTIONS if "yaml" in SECTIONS[title]])
def test_the_blocks_of_a_section_make_a_model_that_passes_its_check(title, workplace) -> None:
    if title in NEEDS:
        pytest.importorskip(NEEDS[title])
    if title == "Hugging Face":
        save_captioner(workplace / "blip")
    for language, code in blocks(SECTIONS[title]):
        named = re.match(r"# ([\w.]+)\n", code)
        if named:
            (workplace / named[1]).write_text(code)
        if language == "toml":
            install(code, workplace)
        elif language == "python" and not named:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript's deprecation, exporters' notes
                exec(compile(code, title, "exec"), {})
    configs = sorted(workplace.glob("*.yaml"))
    assert configs
    for path in configs:
        for model in load_config(path).models:
            findings = check_model(resolve_model(model, workplace, device="cpu"), seconds=0)
            assert [each for each in findings if each.passed is False] == []


def test_each_source_of_the_table_has_a_section() -> None:
    linked = re.findall(r"\]\(#([\w-]+)\)", PAGE)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in SECTIONS}
    assert len(linked) >= 10
    assert set(linked) <= anchors
