from typing import cast

import pytest
import torch
from torch import Tensor, nn

from pixelmill.models.classifier import build_classifier
from pixelmill.models.grad_cam import grad_cam
from pixelmill.models.localiser import Localiser


class Averaged(nn.Module):
    """Convolution, global average, linear: where Grad-CAM is known in closed form."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Linear(5, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classify(self.pool(self.features(images)).flatten(1))


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Averaged(4).eval().requires_grad_(False)


IMAGES = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))


def test_behind_a_global_average_it_is_the_class_activation_map(module):
    # Section 3.1: the importance of a map is its weight in the class, over the number of places
    labels = torch.tensor([1, 3])
    features = module.features(IMAGES)
    weights = module.classify.weight[labels]
    expected = (weights[:, :, None, None] * features).sum(dim=1).relu() / (6 * 8)
    found = grad_cam(module, IMAGES, labels)
    assert found.shape == (2, 6, 8)
    assert found.any()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(grad_cam(module, IMAGES, labels, layer="features.1"), expected)


def test_without_a_label_the_most_probable_class_is_asked_about(module):
    best = module(IMAGES).argmax(dim=1)
    torch.testing.assert_close(grad_cam(module, IMAGES), grad_cam(module, IMAGES, best))


def test_images_of_a_batch_do_not_change_each_other(module):
    labels = torch.tensor([0, 2])
    alone = [grad_cam(module, IMAGES[i : i + 1], labels[i : i + 1])[0] for i in range(2)]
    torch.testing.assert_close(grad_cam(module, IMAGES, labels), torch.stack(alone))


def test_a_class_is_found_where_it_is():
    # Class 0 is redness, and the only red is a square in the lower right corner
    module = Averaged(2).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        cast("Tensor", module.features[0].weight)[0, 0, 1, 1] = 1.0
        module.classify.weight[0, 0] = 1.0
    images = torch.zeros(1, 3, 16, 16)
    images[0, 0, 12:, 8:12] = 1.0
    heat = grad_cam(module, images)[0]
    assert heat.nonzero().tolist() == [[row, column] for row in (6, 7) for column in (4, 5)]


def test_the_module_is_left_as_it_was(module):
    grad_cam(module, IMAGES)
    hooks = [each._forward_hooks for each in module.modules()]
    assert not any(hooks)
    assert all(each.grad is None for each in module.parameters())


@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "densenet121", "swin_t"])
def test_it_works_for_classifiers_of_torchvision_as_they_are(backbone):
    torch.manual_seed(0)
    classifier = build_classifier(3, backbone).eval()
    heat = grad_cam(classifier, torch.randn(1, 3, 64, 64), torch.tensor([2]))
    assert heat.shape == (1, 2, 2)
    assert heat.isfinite().all()


def test_of_a_localiser_the_class_is_explained_not_the_box():
    torch.manual_seed(0)
    module = Localiser(3, "resnet18", cells=3, hidden=8).eval()
    images = torch.randn(1, 3, 64, 96)
    heat = grad_cam(module, images, logits_of=lambda outputs: outputs.class_logits)
    assert heat.shape == (1, 2, 3)
    of_stage = grad_cam(
        module, images, layer="backbone.stages.4", logits_of=lambda outputs: outputs.class_logits
    )
    torch.testing.assert_close(heat, of_stage)


def test_what_has_no_places_is_told(module):
    with pytest.raises(ValueError, match="expected a layer of Averaged, got 'stem'"):
        grad_cam(module, IMAGES, layer="stem")
    with pytest.raises(ValueError, match=r"no feature maps .* in layer 'pool'"):
        grad_cam(module, IMAGES, layer="pool")
    with pytest.raises(ValueError, match="no feature maps"):
        grad_cam(nn.Flatten(), IMAGES)
