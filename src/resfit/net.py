"""NetSpec -> nn.Module: `build` follows the spec by reading it.

Shapes: N images, C channels, H x W pixels, K classes. Module names are the layer names of `resfit.cost`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resfit.errors import BadInput
from resfit.recipe import InitConfig
from resfit.spec import BlockPlan, ConvPlan, NetSpec, NormSpec, SESpec, StemSpec

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
    "silu": lambda: nn.SiLU(inplace=True),
}


def build(spec: NetSpec, init: InitConfig | None = None) -> Network:
    """The network of `spec`, channels_last, with its weights begun as `init` says from torch's global generator."""
    net = Network(spec).to(memory_format=torch.channels_last)
    initialize(net, init or InitConfig())
    return net


class Network(nn.Module):
    """A residual network that takes normalized images, float [N, C, H, W], to logits [N, K]."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.info: Any = None  # class names and normalization, where the network came from a model file
        self.stem = _stem(spec)
        stages: list[nn.Sequential] = [nn.Sequential() for _ in spec.stages]
        channels = spec.stem.channels
        for i, _, block in spec.plan():
            stages[i].append(BLOCKS[block.kind](block, spec))
            channels = block.out_channels
        self.stages = nn.Sequential(*stages)
        if spec.final_norm:
            self.norm, self.act = Norm(channels, spec.norm), ACTIVATIONS[spec.activation]()
        self.pool = _pool(spec)
        self.dropout = nn.Dropout(spec.dropout.head)
        self.head = nn.Linear(channels * spec.pooled_side**2, spec.num_classes, bias=spec.head.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map, float [N, C, H, W]."""
        x: Tensor = self.stages(self.stem(images))
        return self.act(self.norm(x)) if self.spec.final_norm else x

    def forward_head(self, features: Tensor) -> Tensor:
        """Logits [N, K] of the last map."""
        pooled = self.dropout(self.pool(features).flatten(1))
        logits: Tensor = self.head(pooled)
        return logits if self.spec.head.scale == 1.0 else logits * self.spec.head.scale

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of normalized images [N, C, H, W]."""
        return self.forward_head(self.forward_features(images))


class PostActBlock(nn.Module):
    """He et al. 2015: convolution, norm, activation; the last activation follows the addition."""

    def __init__(self, block: BlockPlan, spec: NetSpec) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for n, conv in enumerate(block.convs, 1):
            layers |= _conv_and_pool(n, conv, spec)
            layers |= _norm_and_dropout(n, conv.out_channels, spec)
            if n < len(block.convs):
                layers[f"act{n}"] = ACTIVATIONS[spec.activation]()
        if spec.se:
            layers["se"] = SqueezeExcite(block.out_channels, spec.se)
        self.branch = nn.Sequential(layers)
        self.shortcut = _shortcut(block, spec)
        self.act = ACTIVATIONS[spec.activation]()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        out: Tensor = self.act(self.branch(x) + self.shortcut(x))
        return out


class PreActBlock(nn.Module):
    """He et al. 2016b: norm, activation, convolution; nothing follows the addition.

    A block that changes shape shares its first norm and activation with its shortcut.
    """

    def __init__(self, block: BlockPlan, spec: NetSpec) -> None:
        super().__init__()
        self.norm1, self.act = Norm(block.in_channels, spec.norm), ACTIVATIONS[spec.activation]()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for n, conv in enumerate(block.convs, 1):
            layers |= _conv_and_pool(n, conv, spec)
            if n < len(block.convs):
                layers |= _norm_and_dropout(n + 1, conv.out_channels, spec)
                layers[f"act{n + 1}"] = ACTIVATIONS[spec.activation]()
        if spec.se:
            layers["se"] = SqueezeExcite(block.out_channels, spec.se)
        self.branch = nn.Sequential(layers)
        self.shortcut = _shortcut(block, spec)
        self.shared = block.shape_changes

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        active = self.act(self.norm1(x))
        out: Tensor = self.branch(active) + self.shortcut(active if self.shared else x)
        return out


BLOCKS: dict[str, type[PostActBlock] | type[PreActBlock]] = {
    "basic": PostActBlock,
    "bottleneck": PostActBlock,
    "preact": PreActBlock,
    "preact-bottleneck": PreActBlock,
}


class Norm(nn.BatchNorm2d):
    """Batch normalization over channels; without a gain the scale stays one and is not trained."""

    def __init__(self, channels: int, norm: NormSpec) -> None:
        super().__init__(channels, eps=norm.eps, momentum=norm.momentum)
        if not norm.gain:
            del self.weight
            self.register_buffer("weight", torch.ones(channels), persistent=False)


class SqueezeExcite(nn.Module):
    """Channel-wise gates from the map's mean (Hu et al. 2018). [N, C, H, W] -> same."""

    def __init__(self, channels: int, se: SESpec) -> None:
        super().__init__()
        hidden = max(1, channels // se.reduction)
        self.squeeze = nn.Linear(channels, hidden, bias=se.bias)
        self.excite = nn.Linear(hidden, channels, bias=se.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of each image."""
        gates = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x * gates[:, :, None, None]


class PadShortcut(nn.Module):
    """Strided identity, new channels zero (He et al. 2015, option A)."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C + new, H', W']."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class FrozenConv(nn.Module):
    """A convolution whose filters are set once, by `whiten`, and whose bias is trained. No padding."""

    weight: Tensor

    def __init__(self, in_channels: int, stem: StemSpec) -> None:
        super().__init__()
        self.stride = stem.stride
        weight = torch.empty(stem.channels, in_channels, stem.kernel, stem.kernel)
        self.register_buffer("weight", nn.init.kaiming_normal_(weight))
        self.bias = nn.Parameter(torch.zeros(stem.channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        return F.conv2d(x, self.weight, self.bias, stride=self.stride)

    @torch.no_grad()
    def whiten(self, images: Tensor, eps: float = 5e-4) -> None:
        """Set the filters to ± the whitened principal components of all patches of normalized images [N, C, H, W].

        The method of airbench (Jordan 2024), after Page 2018.
        """
        channels, kernel = self.weight.shape[1], self.weight.shape[2]
        patches = images.float().unfold(2, kernel, 1).unfold(3, kernel, 1)
        flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels * kernel * kernel)
        values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
        filters = (vectors / torch.sqrt(values.clamp(min=0) + eps)).T.reshape(-1, channels, kernel, kernel)
        self.weight.copy_(torch.cat((filters, -filters)))


def initialize(net: Network, init: InitConfig) -> None:
    """Begin the weights of every convolution, and of each residual branch's last layer where asked."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            _initialize_filters(module, init)
    if init.zero_last_norm:
        if not net.spec.norm.gain and any(isinstance(module, PostActBlock) for module in net.modules()):
            raise BadInput("norms without a gain cannot begin at zero (init.zero_last_norm): give spec.norm.gain")
        for block in net.modules():
            if isinstance(block, PostActBlock | PreActBlock):
                kind = Norm if isinstance(block, PostActBlock) else nn.Conv2d
                last = [module for module in block.branch if isinstance(module, kind)][-1]
                nn.init.zeros_(last.weight)


def _initialize_filters(conv: nn.Conv2d, init: InitConfig) -> None:
    if init.filters == "he":
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    else:  # torch's own start, and then as many filters as there are inputs pass one of them on
        conv.reset_parameters()
        nn.init.dirac_(conv.weight.data[: conv.in_channels])
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _stem(spec: NetSpec) -> nn.Sequential:
    stem, act = spec.stem, ACTIVATIONS[spec.activation]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stem.kind == "whiten":
        layers["conv"] = FrozenConv(spec.input.channels, stem)
        layers["act"] = act()
        return nn.Sequential(layers)
    plan = ConvPlan(in_channels=spec.input.channels, out_channels=stem.channels, kernel=stem.kernel, stride=stem.stride)
    layers["conv"] = _conv(plan, spec)
    if not spec.preact:
        layers["norm"] = Norm(stem.channels, spec.norm)
        layers["act"] = act()
    return nn.Sequential(layers)


def _conv_and_pool(n: int, conv: ConvPlan, spec: NetSpec) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict({f"conv{n}": _conv(conv, spec)})
    if conv.pool > 1:
        layers["pool"] = nn.MaxPool2d(conv.pool)
    return layers


def _norm_and_dropout(n: int, channels: int, spec: NetSpec) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict({f"norm{n}": Norm(channels, spec.norm)})
    if spec.dropout.block > 0:
        layers[f"dropout{n}"] = nn.Dropout2d(spec.dropout.block)
    return layers


def _shortcut(block: BlockPlan, spec: NetSpec) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if block.pool > 1:
        layers["pool"] = nn.MaxPool2d(block.pool)
    if block.projection:
        layers["conv"] = _conv(block.projection, spec)
        if not block.preact:
            layers["norm"] = Norm(block.out_channels, spec.norm)
    elif block.stride // block.pool > 1 or block.in_channels != block.out_channels:
        layers["pad"] = PadShortcut(block.stride // block.pool, block.out_channels - block.in_channels)
    return nn.Sequential(layers)


def _conv(conv: ConvPlan, spec: NetSpec) -> nn.Conv2d:
    return nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel,
        stride=conv.stride,
        padding=conv.kernel // 2,
        bias=spec.conv_bias,
    )


def _pool(spec: NetSpec) -> nn.Module:
    if spec.pool.size == "global":
        return nn.AdaptiveAvgPool2d(1) if spec.pool.kind == "avg" else nn.AdaptiveMaxPool2d(1)
    return nn.AvgPool2d(spec.pool.size) if spec.pool.kind == "avg" else nn.MaxPool2d(spec.pool.size)
