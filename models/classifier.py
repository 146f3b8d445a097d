"""Classification of whole images by any of torchvision's networks.

The networks' own papers say what they are; VGG, ResNet, Inception-v3 and MobileNet are named in
`feature_extractor.py`. The auxiliary classifiers of Inception: Christian Szegedy et al., Going
Deeper with Convolutions, CVPR 2015, https://arxiv.org/abs/1409.4842, section 5; Rethinking the
Inception Architecture, CVPR 2016, https://arxiv.org/abs/1512.00567, section 4.

Differences: none but those of torchvision's implementations.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from pixelmill.models.interface import ClassOutput
from pixelmill.models.spec import ModelSpec
from pixelmill.models.targets import ClassTarget, Target

__all__ = ["build_classifier", "class_loss", "class_outputs"]

# Going Deeper with Convolutions, section 5
_AUXILIARY_WEIGHT = 0.3
# They warn unless told whether to draw their weights as published
_TOLD = ("googlenet", "inception_v3")


def build_classifier(num_classes: int, backbone: str = "resnet50", **others: Any) -> nn.Module:
    """A network with random weights that maps (B, 3, H, W) to (B, K) logits.

    Its tensors have the names of torchvision's own files, so that a training can start from those.

    Args:
        num_classes: K.
        backbone: one of torchvision's classifiers, such as resnet50 or vgg16.
        others: of torchvision's builder, such as `image_size` of a vision transformer.

    Raises:
        ValueError: torchvision has no such classifier.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if backbone not in known:
        raise ValueError(f"expected a classifier of torchvision, got {backbone!r}: {known}")
    if backbone in _TOLD:
        others = {"init_weights": True, **others}
    return torchvision.models.get_model(backbone, weights=None, num_classes=num_classes, **others)


def class_outputs(
    module: nn.Module, outputs: Tensor, spec: ModelSpec, canvas: tuple[int, int]
) -> list[ClassOutput]:
    """Probabilities of (B, K) logits, image by image."""
    return [ClassOutput(probs) for probs in outputs.float().softmax(dim=1).cpu()]


def class_loss(
    module: nn.Module, outputs: Tensor | tuple[Tensor | None, ...], targets: Sequence[Target]
) -> dict[str, Tensor]:
    """Cross-entropy of the image's class.

    Args:
        module: not used.
        outputs: (B, K) logits; of Inception's family first those that count, then the auxiliary
            ones, None where there are none.
        targets: `ClassTarget` per image.

    Returns:
        Scalar "cross_entropy", and "auxiliary" where there are such outputs.
    """
    labels = torch.stack([cast("ClassTarget", target).label for target in targets])
    every = outputs if isinstance(outputs, tuple) else (outputs,)
    main, *auxiliary = [
        F.cross_entropy(logits.float(), labels) for logits in every if logits is not None
    ]
    if not auxiliary:
        return {"cross_entropy": main}
    return {"cross_entropy": main, "auxiliary": _AUXILIARY_WEIGHT * torch.stack(auxiliary).sum()}
