import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pixelmill.models.classifier import build_classifier, class_loss, class_outputs
from pixelmill.models.losses import weighted_sum
from pixelmill.models.targets import ClassTarget


def count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def targets(*labels: int) -> list[ClassTarget]:
    return [ClassTarget(torch.tensor(label)) for label in labels]


@pytest.mark.parametrize(
    ("backbone", "published"),
    [
        # torchvision's documentation of the weights, section "num_params"
        ("vgg16", 138_357_544),
        ("resnet50", 25_557_032),
        ("inception_v3", 27_161_264),
        ("mobilenet_v2", 3_504_872),
    ],
)
def test_a_classifier_has_as_many_parameters_as_published(backbone, published):
    with torch.device("meta"):
        others = {"init_weights": False} if backbone == "inception_v3" else {}
        assert count(build_classifier(1000, backbone, **others)) == published


@pytest.mark.parametrize(
    "backbone",
    ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "shufflenet_v2_x0_5", "swin_t"],
)
def test_classifiers_of_every_family_answer_in_our_classes(backbone):
    with torch.device("meta"):
        module = build_classifier(3, backbone).eval()
        assert module(torch.zeros(2, 3, 224, 224)).shape == (2, 3)


def test_an_unknown_classifier_is_told():
    with pytest.raises(ValueError, match="classifier of torchvision, got 'resnet19'"):
        build_classifier(3, "resnet19")


@pytest.mark.parametrize("size", [(64, 64), (67, 93)])
def test_images_of_odd_sizes_get_probabilities(size, make_spec):
    torch.manual_seed(0)
    module = build_classifier(3, "mobilenet_v3_small").eval()
    with torch.no_grad():
        found = class_outputs(
            module, module(torch.randn(2, 3, *size)), make_spec("classification"), size
        )
    assert [each.probs.shape for each in found] == [(3,), (3,)]
    for each in found:
        assert each.probs.sum().item() == pytest.approx(1)


def test_the_loss_is_the_surprise_and_auxiliary_classifiers_count_a_little():
    logits, other = torch.tensor([[2.0, 0, 1], [0, 1, 0]]), torch.tensor([[0.0, 1, 0], [1, 0, 0]])
    wanted = torch.tensor([0, 2])
    alone = class_loss(nn.Identity(), logits, targets(0, 2))
    assert alone.keys() == {"cross_entropy"}
    torch.testing.assert_close(alone["cross_entropy"], F.cross_entropy(logits, wanted))
    # GoogLeNet gives two, and None in evaluation mode; Inception-v3 one
    both = class_loss(nn.Identity(), (logits, other, None), targets(0, 2))
    torch.testing.assert_close(both["auxiliary"], 0.3 * F.cross_entropy(other, wanted))


@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "resnet18"])
def test_the_gradient_reaches_every_parameter(backbone):
    torch.manual_seed(0)
    module = build_classifier(3, backbone).train()
    weighted_sum(
        class_loss(module, module(torch.randn(2, 3, 32, 32)), targets(0, 2)), {}
    ).backward()
    assert [name for name, each in module.named_parameters() if each.grad is None] == []
