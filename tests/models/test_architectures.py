import json

import pytest

from pixelmill.models.architectures import find_architecture, guess_architecture


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model_type": "vit"}, "transformers"),
        ({"architecture": "resnet18", "num_classes": 2}, "timm/resnet18"),
        ({"_model_class": "Unet", "encoder_name": "resnet18"}, "smp/unet"),
    ],
)
def test_a_folder_says_which_library_it_is_of(tmp_path, content, expected) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert guess_architecture("m", tmp_path) == expected


def test_a_folder_of_none_is_told(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="of neither transformers, timm nor"):
        guess_architecture("m", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unett", "did you mean 'unet'"),
        ("torchvision/none", "no detector, segmenter or classifier"),
        ("zzz", "models list` has them all"),
    ],
)
def test_a_name_that_is_not_there_is_told_with_the_nearest(name, message) -> None:
    with pytest.raises(ValueError, match=message):
        find_architecture("m", name)
