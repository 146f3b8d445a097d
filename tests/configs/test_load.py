from pathlib import Path

import pytest

from pixelmill.configs.load import (
    PRESETS,
    TRAIN_PRESETS,
    ConfigError,
    find_config,
    list_presets,
    load_config,
    load_train_config,
)

FAULTY = """\
name: faulty
modles: []
models:
  - name: Bad Name
    task: detection
    wieghts: embedded:x
    postprocess:
      score_threshold: 1.5
      nms: hrad
      nms: hard
    preprocess:
      canvases: [[320, 0]]
  - name: x
    task: semntic_segmentation
    weights: 5
  - name: y
    weights: embedded:y
shard:
  max_images: many
evaluation:
  class_names: {a: yes}
"""

FOUND = [
    (2, "modles", "did you mean 'models'?"),
    (4, "models[0].name", "string should match pattern"),
    (6, "models[0].wieghts", "did you mean 'weights'?"),
    (8, "models[0].postprocess.score_threshold", "less than or equal to 1, got 1.5"),
    (10, "models[0].postprocess.nms", "said twice, first in line 9"),
    (12, "models[0].preprocess.canvases[0][1]", "greater than 0, got 0"),
    (14, "models[1].task", "did you mean 'semantic_segmentation'?"),
    (15, "models[1].weights", "a valid string, got 5"),
    (16, "models[2].task", "required, but not there; one of"),
    (19, "shard.max_images", "got 'many'"),
    (21, "evaluation.class_names.a", "quote it"),
]


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_every_fault_is_reported_with_its_line_and_remedy(tmp_path):
    path = write(tmp_path, FAULTY)
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    faults = raised.value.faults
    assert [(fault.line, fault.key_path) for fault in faults] == [row[:2] for row in FOUND]
    for fault, (line, _, text) in zip(faults, FOUND, strict=True):
        assert text in str(fault)
        assert f"{path}:{line}: " in str(raised.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "the file is empty"),
        ("- a\n- b\n", "expected keys and values, got a list"),
        ("name: [a\n", "not YAML"),
        ("name: x\nmodels: []\n", "at least 1 item"),
    ],
)
def test_what_is_no_configuration_at_all(tmp_path, text, fault):
    with pytest.raises(ConfigError, match=fault):
        load_config(write(tmp_path, text))


def test_a_missing_file_and_a_misspelt_preset_are_told():
    with pytest.raises(ConfigError, match="no such file"):
        load_config("nowhere/mine.yaml")
    with pytest.raises(ConfigError, match="no preset is named 'dmo'; did you mean 'demo'"):
        load_config("dmo")


def test_paths_in_a_file_start_from_its_folder(tmp_path, monkeypatch):
    text = """\
name: mine
images: photos
models:
  - {name: a, task: detection, weights: w/a.onnx, decode: "decode.py:run"}
  - {name: b, task: detection, weights: "embedded:b"}
  - {name: c, task: detection, weights: /abs/c.pt, batch_size: 1e1}
evaluation: {instances: truth.json, subset: lists/held_out.txt}
"""
    path = write(tmp_path, text)
    monkeypatch.chdir("/")
    config = load_config(path)
    assert config.images == str(tmp_path / "photos")
    weights = [model.weights for model in config.models]
    assert weights == [str(tmp_path / "w/a.onnx"), "embedded:b", "/abs/c.pt"]
    assert config.models[0].decode == f"{tmp_path / 'decode.py'}:run"
    assert config.models[2].batch_size == 10
    assert config.evaluation.instances == "truth.json"
    assert config.evaluation.subset == str(tmp_path / "lists/held_out.txt")


def test_paths_in_a_preset_start_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("bccd", "camvid", "pennfudan"):  # they compare what training kept apart
        config = load_config(name)
        assert config.models[0].weights == str(tmp_path / f"runs/train/{name}.safetensors")
        assert config.evaluation.subset == str(tmp_path / f"runs/train/{name}.val.txt")


def test_every_yaml_loads_and_begins_with_its_command():
    paths = sorted(PRESETS.rglob("*.yaml"))
    assert len(paths) >= len(list_presets()) + len(list_presets(TRAIN_PRESETS)) > 10
    for path in paths:
        first, second = path.read_text().splitlines()[:2]
        assert first.startswith("# pixelmill "), path
        assert second.startswith("# "), path
        is_training = path.parent == TRAIN_PRESETS
        config = load_train_config(path.stem) if is_training else load_config(path.stem)
        assert config.name == path.stem
        assert find_config(path) == path.resolve()
