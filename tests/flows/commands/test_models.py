import json
import re

import pytest
import torch

from pixelmill.models.zoo import ARCHITECTURES


def test_a_line_says_task_parameters_and_source(run):
    code, out, _ = run("models", "list", "--task", "detection")
    assert code == 0
    lines = {line.split()[0]: line.split() for line in out.splitlines()}
    assert lines["ssd"][-2:] == ["26,285,486", "pixelmill"]
    assert lines["torchvision/ssd300_vgg16"][-2:] == ["35,641,826", "torchvision"]
    assert "unet" not in lines


def test_an_architecture_is_shown_with_its_paper_and_arguments(run):
    code, out, _ = run("models", "show", "frrn")
    assert code == 0
    for expected in ("arxiv.org/abs/1611.08323", "17,712,259 parameters; published", "Differences"):
        assert expected in out
    _, out, _ = run("models", "show", "torchvision/resnet18")
    assert "11,689,512" in out
    assert "acc@1" in out
    _, out, _ = run("models", "show", "timm/resnet18.a1_in1k")
    assert "hf:timm/resnet18.a1_in1k" in out
    assert "licence of weights" in out


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architecture_of_ours_is_shown(run, name):
    code, out, _ = run("models", "show", name)
    assert code == 0
    assert re.search(
        r"^arguments +(num_classes|vocabulary_size): int, \S.*[^)]$", out, re.MULTILINE
    )
    assert " parameters" in out


def test_a_network_without_weights_cannot_be_fetched(run):
    code, _, err = run("models", "fetch", "unet")
    assert code == 2
    assert "pixelmill train" in err


def test_a_configured_model_is_shown_in_full(run, tiny_config):
    code, out, _ = run("models", "show", str(tiny_config), "--model", "segmenter")
    assert code == 0
    for expected in ("key", "segmenter-", "96x128, 128x96", "torch fp32", "labels"):
        assert expected in out
    code, _, err = run("models", "show", str(tiny_config))
    assert code == 2
    assert "expected --model, one of detector, segmenter" in err


def test_a_sound_model_passes_its_check(run, tiny_config):
    weights = str(tiny_config.with_name("segmenter.safetensors"))
    code, out, _ = run("models", "check", weights, "--device", "cpu", "--seconds", "0")
    assert code == 0
    assert "logits (" in out
    assert "WRONG" not in out


def test_a_broken_model_fails_its_check(run, tiny_config, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(tiny_config.with_name("segmenter.safetensors"), framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        about = file.metadata()
    broken = {
        name: torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    save_file(broken, tmp_path / "broken.safetensors", about)
    code, out, _ = run("models", "check", str(tmp_path / "broken.safetensors"), "--seconds", "0")
    assert code == 1
    assert "WRONG" in out
    assert "logits that are no numbers" in out


def test_weights_that_do_not_say_their_task_are_asked_for_it(run, tmp_path):
    code, _, err = run("models", "check", str(tmp_path))
    assert code == 2
    assert "add --task, one of classification" in err


def test_a_folder_is_checked_with_its_task(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=32, patch_size=16,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    arguments = ("check", str(tmp_path), "--task", "classification", "--seconds", "0")
    code, out, _ = run("models", *arguments)
    assert code == 0
    assert "probabilities of 2 classes" in out


def test_the_table_is_written(run, tmp_path):
    (tmp_path / "t.json").write_text(
        json.dumps([{"architecture": "unet", "dataset": "CamVid", "metric": "mIoU", "value": 0.5}])
    )
    out = tmp_path / "models.md"
    files = ("--trained", str(tmp_path / "t.json"), "--speeds", str(tmp_path / "s.json"))
    code, _, _ = run("models", "table", "--out", str(out), *files)
    assert code == 0
    assert "CamVid: mIoU 0.500" in out.read_text()


@pytest.mark.parametrize("command", ["list", "show", "fetch", "check", "quantize", "table"])
def test_every_command_has_an_example(run, command):
    code, out, _ = run("models", command, "--help")
    assert code == 0
    assert f"Example: pixelmill models {command}" in out
