import pytest
import torch

from pixelmill.models.backbone import ResidualBackbone


@pytest.mark.parametrize("size", [(64, 96), (50, 77)])
def test_features_have_the_promised_channels_and_strides(size):
    backbone = ResidualBackbone(width=8, depths=(1, 2, 1, 1)).eval()
    features = backbone(torch.zeros(1, 3, *size))
    for x, channels, stride in zip(features, backbone.channels, backbone.strides, strict=True):
        assert x.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))


def test_fewer_stages_have_the_same_names_so_that_weights_can_be_shared():
    whole = ResidualBackbone(width=8, depths=(1, 2, 2, 1)).state_dict()
    part = ResidualBackbone(width=8, depths=(1, 2, 2)).state_dict()
    assert part.keys() < whole.keys()
    assert all(part[key].shape == whole[key].shape for key in part)
