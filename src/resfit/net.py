"""The residual network as a PyTorch module: `build` makes a `Network` from a NetSpec.

Shapes: N images, C channels, H x W pixels, K classes. Module names match the layer names of `resfit.cost`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resfit.errors import BadInput
from resfit.kernels.conv import Conv2d
from resfit.kernels.pool import MaxPool2d
from resfit.layers import (
    Blur,
    DropPath,
    EfficientChannelAttention,
    GlobalMaxPool2d,
    Layers,
    Norm,
    PadShortcut,
    ShakeDrop,
    SqueezeExcite,
    WhiteningConv,
    finish,
    for_second_reader,
    mix_branches,
)
from resfit.modelheader import UNKNOWN, ModelInfo
from resfit.recipe import InitConfig
from resfit.spec import BlockPlan, ConvPlan, NetSpec

ACTIVATIONS: dict[str, Callable[[bool], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": lambda _inplace: nn.GELU(),
    "silu": nn.SiLU,
}


def build(spec: NetSpec, init: InitConfig | None = None) -> Network:
    """Build the network of `spec` in channels_last, with weights initialized according to `init`.

    Initial weights are drawn from torch's global generator.
    """
    net = Network(spec).to(memory_format=torch.channels_last)
    initialize(net, init or InitConfig())
    return net


class Network(nn.Module):
    """A residual network that maps normalized images, float [N, C, H, W], to logits [N, K]."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.info: ModelInfo = UNKNOWN
        self.stem = _stem(spec)
        stages: list[nn.Sequential] = [nn.Sequential() for _ in spec.stages]
        channels = spec.stem.channels
        for i, _, block in spec.plan():
            stages[i].append(Block(block, spec))
            channels = block.out_channels
        self.stages = nn.Sequential(*stages)
        last = spec.last_layout
        self.norm = Norm(channels, spec.norm) if last.norm_first else nn.Identity()
        self.act = nn.Identity() if last.act_last else _activation(spec)
        self.pool = _pool(spec)
        self.dropout = nn.Dropout(spec.dropout.head)
        self.num_features = channels * spec.pooled_side**2  # input features of the classifier
        self.head: nn.Module = nn.Linear(self.num_features, spec.num_classes, bias=spec.head.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last feature map, float [N, C, H, W]."""
        return finish(self.stages(self.stem(images)), self.norm, act=self.act)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits [N, K] of the last feature map, or with `pre_logits` the classifier's input [N, F]."""
        pooled: Tensor = self.dropout(self.pool(features).flatten(1))
        if pre_logits or isinstance(self.head, nn.Identity):
            return pooled
        logits: Tensor = self.head(pooled)
        return logits if self.spec.head.scale == 1.0 else logits * self.spec.head.scale

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one for `num_classes` classes; 0 removes it, `forward` then returns features.

        The class names and the calibration temperature in `info` are cleared.
        """
        if num_classes == 0:
            self.head = nn.Identity()
        else:
            self.spec = replace(self.spec, num_classes=num_classes)
            self.head = nn.Linear(self.num_features, num_classes, bias=self.spec.head.bias)
            self.head.to(next(self.parameters()))
        self.info = replace(self.info, classes=(), temperature=None)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [N, K] of normalized images [N, C, H, W]."""
        return self.forward_head(self.forward_features(images))


class Block(nn.Module):
    """A residual block: one or two branches of convolutions added to a shortcut, laid out as the block kind says.

    If a block starts with an activation and changes the shape, its shortcut also reads the activated input (He et al.
    2016b). In a block with a late shortcut, branch and shortcut both read the output of `entry`: the first convolution
    with its norm and activation.
    """

    def __init__(self, block: BlockPlan, spec: NetSpec) -> None:
        super().__init__()
        layout = block.layout
        self.norm1 = Norm(block.in_channels, spec.norm) if layout.norm_first else nn.Identity()
        # Without a norm before it, an in-place activation would overwrite the input that the shortcut reads.
        self.act1 = _activation(spec, inplace=layout.norm_first) if layout.act_first else nn.Identity()
        layers = list(_branch(block, spec).items())
        begins = 1 + [name for name, _ in layers].index("act1") if block.late else 0
        self.entry = Layers(OrderedDict(layers[:begins]))
        self.branch = Layers(OrderedDict(layers[begins:]))
        self.branch2 = Layers(_branch(block, spec)) if block.branches == 2 else None
        self.drop = _drop(block, spec)
        self.shortcut = _shortcut(block, spec)
        self.act = _activation(spec) if layout.act_last else nn.Identity()
        self.ends_on_norm = layout.norm_last
        self.shares = layout.act_first and block.shape_changes
        self.shakes = spec.mix == "shake"

    @property
    def branches(self) -> list[Layers]:
        """The residual branches."""
        return [self.branch] if self.branch2 is None else [self.branch, self.branch2]

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        x = self.entry(x)
        start = finish(x, self.norm1, act=self.act1)
        shortcut = self.shortcut(for_second_reader(start if self.shares else x))
        if self.branch2 is None and isinstance(self.drop, nn.Identity):
            return self.branch(start, added=shortcut, act=self.act)  # type: ignore[no-any-return]
        residual = self.branch(start)
        if self.branch2 is not None:
            residual = mix_branches(residual, self.branch2(start), shake=self.training and self.shakes)
        return finish(self.drop(residual), added=shortcut, act=self.act)


def initialize(net: Network, init: InitConfig) -> None:
    """Initialize every convolution and, with `init.zero_last_norm`, zero the last layer of each residual branch.

    That layer is the last norm or, in blocks that do not end on a norm, the last convolution. Raises BadInput if it is
    a norm without a gain.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            _initialize_filters(module, init)
    if init.zero_last_norm:
        blocks = [module for module in net.modules() if isinstance(module, Block)]
        if not net.spec.norm.gain and any(block.ends_on_norm for block in blocks):
            raise BadInput("norms without a gain cannot start at zero (init.zero_last_norm): give spec.norm.gain")
        for block in blocks:
            kind = Norm if block.ends_on_norm else nn.Conv2d
            for branch in block.branches:
                last = [module for module in branch if isinstance(module, kind)][-1]
                nn.init.zeros_(last.weight)


def _initialize_filters(conv: nn.Conv2d, init: InitConfig) -> None:
    if init.filters == "he":
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    else:  # torch's default, then the first in_channels filters each pass one input channel through
        conv.reset_parameters()
        nn.init.dirac_(conv.weight.data[: conv.in_channels], conv.groups)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _stem(spec: NetSpec) -> Layers:
    stem, first = spec.stem, spec.first_layout
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stem.kind == "whiten":
        layers["conv"] = WhiteningConv(spec.input.channels, stem)
        layers["act"] = _activation(spec)
        return Layers(layers)
    plan = ConvPlan(in_channels=spec.input.channels, out_channels=stem.channels, kernel=stem.kernel, stride=stem.stride)
    layers["conv"] = _conv(plan, spec)
    if first.norm_last:
        layers["norm"] = Norm(stem.channels, spec.norm)
    if first.act_last:
        layers["act"] = _activation(spec)
    return Layers(layers)


def _activation(spec: NetSpec, *, inplace: bool = True) -> nn.Module:
    return ACTIVATIONS[spec.activation](inplace)


def _branch(block: BlockPlan, spec: NetSpec) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for n, conv in enumerate(block.convs, 1):
        last, place = n == len(block.convs), n + block.layout.norm_first
        layers |= _conv_and_pool(n, conv, spec)
        if not last or block.layout.norm_last:
            layers |= _norm_and_dropout(place, conv.out_channels, spec)
        if not last:
            layers[f"act{place}"] = _activation(spec)
    if spec.se:
        layers["se"] = SqueezeExcite(block.out_channels, spec.se)
    if spec.eca:
        layers["eca"] = EfficientChannelAttention(block.out_channels, spec.eca)
    return layers


def _drop(block: BlockPlan, spec: NetSpec) -> nn.Module:
    if not block.drop:
        return nn.Identity()
    return DropPath(block.drop) if spec.dropout.path else ShakeDrop(block.drop)


def _conv_and_pool(n: int, conv: ConvPlan, spec: NetSpec) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict({f"conv{n}": _conv(conv, spec)})
    if conv.pool > 1:
        layers["pool"] = MaxPool2d(conv.pool)
    if conv.blur > 1:
        layers["blur"] = Blur(conv.blur)
    return layers


def _norm_and_dropout(n: int, channels: int, spec: NetSpec) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict({f"norm{n}": Norm(channels, spec.norm)})
    if spec.dropout.block > 0:
        layers[f"dropout{n}"] = nn.Dropout2d(spec.dropout.block)
    return layers


class ShiftShortcut(nn.Module):
    """Two parallel convolutions, concatenated; the second reads the map shifted by one pixel (Gastaldi 2017)."""

    def __init__(self, block: BlockPlan, spec: NetSpec) -> None:
        super().__init__()
        self.conv1, self.conv2 = (_conv(conv, spec) for conv in block.projections)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        return torch.cat((self.conv1(x), self.conv2(F.pad(x, (-1, 1, -1, 1)))), dim=1)


def _shortcut(block: BlockPlan, spec: NetSpec) -> Layers:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    stride, new_channels = block.conv_stride, block.out_channels - block.in_channels
    if block.late:
        return Layers()
    if block.pool > 1:
        layers["pool"] = MaxPool2d(block.pool)
    if block.blur > 1:
        layers["blur"] = Blur(block.blur)
    if block.projections:
        shifted = block.shortcut.kind == "shift"
        layers |= {"shift": ShiftShortcut(block, spec)} if shifted else {"conv": _conv(block.projections[0], spec)}
        if block.layout.norm_last:
            layers["norm"] = Norm(block.out_channels, spec.norm)
        return Layers(layers)
    if stride > 1 and block.shortcut.kind == "avg-pad":
        layers["pool"], stride = nn.AvgPool2d(stride, ceil_mode=True), 1
    if stride > 1 or new_channels:
        layers["pad"] = PadShortcut(stride, new_channels)
    return Layers(layers)


def _conv(conv: ConvPlan, spec: NetSpec) -> Conv2d:
    return Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel,
        stride=conv.stride,
        padding=conv.kernel // 2,
        groups=conv.groups,
        bias=spec.conv_bias,
    )


def _pool(spec: NetSpec) -> nn.Module:
    if spec.pool.size == "global":
        return nn.AdaptiveAvgPool2d(1) if spec.pool.kind == "avg" else GlobalMaxPool2d()
    return nn.AvgPool2d(spec.pool.size) if spec.pool.kind == "avg" else nn.MaxPool2d(spec.pool.size)
