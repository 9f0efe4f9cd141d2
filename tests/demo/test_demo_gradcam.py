"""Grad-CAM against cases worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from resfit.demo.gradcam import grad_cam, overlay
from resfit.net import build
from resfit.spec import NetSpec


class TwoMaps(nn.Module):
    """Features are the image's two channels; the logits are weighted means of theirs."""

    def forward_features(self, images: Tensor) -> Tensor:
        return images

    def forward_head(self, features: Tensor) -> Tensor:
        return features.mean((2, 3)) @ torch.tensor([[2.0, -1.0], [-1.0, -3.0]]).T


IMAGE = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 6.0], [4.0, 4.0]]]])


def test_grad_cam_by_hand() -> None:
    # Each place counts a quarter, so the channels' weights for class 0 are 2/4 and -1/4: the map is
    # [[0.5, 1 - 1.5], [1.5 - 1, 2 - 1]] = [[0.5, -0.5], [0.5, 1]], and its negative part is left out.
    assert grad_cam(TwoMaps(), IMAGE, 0).tolist() == [[0.5, 0.0], [0.5, 1.0]]


def test_nothing_speaks_for_a_class_without_positive_evidence() -> None:
    assert grad_cam(TwoMaps(), IMAGE, 1).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("block", ["basic", "preact"])
def test_a_network_with_a_linear_head_by_its_weights(block: str) -> None:
    stages = [{"blocks": 1, "channels": 4}, {"blocks": 1, "channels": 6}]
    spec = {"input": {"size": 8}, "stem": {"channels": 4}, "stages": stages, "block": block, "num_classes": 3}
    torch.manual_seed(0)
    net, image = build(NetSpec.from_dict(spec)).eval(), torch.randn(1, 3, 8, 8)
    with torch.inference_mode():
        features = net.forward_features(image)
        expected = (net.head.weight[2][:, None, None] * features[0]).sum(0).relu()  # the mean gives all one factor
        expected = nn.functional.interpolate(expected[None, None], size=(8, 8), mode="bilinear")[0, 0]
    cam = grad_cam(net, image, 2)
    assert cam.max() == 1
    torch.testing.assert_close(cam, expected / expected.max())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_veil_is_warm_where_the_network_looked() -> None:
    pixels = torch.full((1, 2, 2), 100, dtype=torch.uint8)
    picture = overlay(pixels, torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    assert picture.getpixel((0, 0)) == (100, 100, 100)
    red, green, blue = picture.getpixel((1, 0))
    assert red > 190 > green > blue
