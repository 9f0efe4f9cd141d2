"""A picture becomes what the network was trained on."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import resfit
from resfit.data.decode import decode
from resfit.data.normalize import normalizer
from resfit.errors import BadInput
from resfit.modelheader import UNKNOWN, ModelInfo
from resfit.net import Network, build
from resfit.spec import NetSpec

INFO = {
    1: ModelInfo(classes=("a", "b"), mean=(0.3,), std=(0.2,)),
    3: ModelInfo(classes=("a", "b"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1)),
}


def network(channels: int) -> Network:
    images = {"channels": channels, "size": 12}
    net = build(NetSpec.from_dict({"input": images, "stages": [{"blocks": 1, "channels": 4}], "num_classes": 2}))
    net.info = INFO[channels]
    return net


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(256, size=(size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    return image.convert("RGB").convert("P") if mode == "P" else image.convert(mode)


@pytest.mark.parametrize("size", [(12, 12), (40, 25), (7, 30)], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_gives_what_training_gives(channels, mode, size, tmp_path):
    net, image = network(channels), picture(mode, size)
    image.save(tmp_path / "image.png")
    pixels = torch.tensor(decode(tmp_path / "image.png", size=12, channels=channels))
    normalize = normalizer(net.info.mean, net.info.std, torch.device("cpu"))
    found: Tensor = resfit.transform(net)(image)
    assert (found.shape, found.dtype) == ((channels, 12, 12), torch.float32)
    torch.testing.assert_close(found, normalize(pixels[None])[0])


def test_a_loaders_worker_can_take_it_along():
    image, transform = picture("RGB", (20, 20)), resfit.transform(network(3))
    assert torch.equal(pickle.loads(pickle.dumps(transform))(image), transform(image))
    assert torch.equal(copy.deepcopy(transform)(image), transform(image))


def test_a_network_that_was_not_loaded_has_no_normalization():
    net = network(3)
    net.info = UNKNOWN
    with pytest.raises(BadInput, match=r"give one that resfit\.load returned"):
        resfit.transform(net)
