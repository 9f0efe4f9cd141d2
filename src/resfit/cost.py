"""The cost of a NetSpec, layer by layer, without building it: trainable parameters, MACs and activation bytes.

A layer's name is the qualified name of its module in the network that `build` returns, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from resfit.spec import BlockPlan, ConvPlan, ECASpec, NetSpec


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The cost of one layer for one image.

    Output shape [channels, height, width], trainable parameters, multiply-accumulates and frozen values.
    """

    name: str
    kind: str
    shape: tuple[int, int, int]
    params: int
    macs: int = 0
    frozen: int = 0

    @property
    def activation_bytes(self) -> int:
        """Size of the output in fp32, in bytes."""
        channels, height, width = self.shape
        return 4 * channels * height * width


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a network. `macs` counts convolutions and linear layers; `frozen` values are not trained."""

    layers: tuple[Layer, ...]

    @property
    def params(self) -> int:
        """Number of trainable parameters."""
        return sum(layer.params for layer in self.layers)

    @property
    def frozen(self) -> int:
        """Number of filter values that are set once and not trained (of a whitening stem)."""
        return sum(layer.frozen for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the forward pass for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Size of all layer outputs for one image in fp32, in bytes."""
        return sum(layer.activation_bytes for layer in self.layers)


def cost(spec: NetSpec) -> Cost:
    """Return the cost of `spec`; `params` is exactly the sum of p.numel() over `build(spec).parameters()`."""
    return Cost(layers=tuple(_layers(spec)))


def _layers(spec: NetSpec) -> Iterator[Layer]:
    side, _ = spec.sizes()
    yield from _stem(spec, side)
    channels = spec.stem.channels
    for i, j, block in spec.plan():
        yield from _block(spec, block, f"stages.{i}.{j}", side)
        side, channels = block.side_after(side), block.out_channels
    if spec.last_layout.norm_first:
        yield _norm(spec, "norm", channels, side)
    features = channels * spec.pooled_side**2
    params = features * spec.num_classes + spec.num_classes * spec.head.bias
    shape = (spec.num_classes, 1, 1)
    yield Layer(name="head", kind="linear", shape=shape, params=params, macs=features * spec.num_classes)


def _stem(spec: NetSpec, side: int) -> Iterator[Layer]:
    stem, size = spec.stem, spec.input.channels * spec.stem.channels * spec.stem.kernel**2
    shape, macs = (stem.channels, side, side), size * side * side
    if stem.kind == "whiten":
        yield Layer(name="stem.conv", kind="whiten", shape=shape, params=stem.channels, macs=macs, frozen=size)
        return
    conv = ConvPlan(in_channels=spec.input.channels, out_channels=stem.channels, kernel=stem.kernel)
    yield _conv(spec, "stem.conv", conv, side)
    if spec.first_layout.norm_last:
        yield _norm(spec, "stem.norm", stem.channels, side)


def _block(spec: NetSpec, block: BlockPlan, name: str, side: int) -> Iterator[Layer]:
    """Yield the layers of one block whose input feature map is `side` x `side` pixels."""
    if block.layout.norm_first:
        yield _norm(spec, f"{name}.norm1", block.in_channels, side)
    for branch in ("branch", "branch2")[: block.branches]:
        yield from _branch(spec, block, name, branch, side)
    if block.projections:
        yield from _projections(spec, block, f"{name}.shortcut", block.side_after(side))


def _branch(spec: NetSpec, block: BlockPlan, name: str, branch: str, side: int) -> Iterator[Layer]:
    for n, conv in enumerate(block.convs, 1):
        place = f"{name}.entry" if block.late and n == 1 else f"{name}.{branch}"
        conv_side, side = conv.sides(side)
        yield _conv(spec, f"{place}.conv{n}", conv, conv_side)
        if n < len(block.convs) or block.layout.norm_last:
            yield _norm(spec, f"{place}.norm{n + block.layout.norm_first}", conv.out_channels, side)
    if spec.se:
        yield from _se(spec, f"{name}.{branch}.se", block.out_channels)
    if spec.eca:
        yield _eca(spec.eca, f"{name}.{branch}.eca.conv", block.out_channels)


def _projections(spec: NetSpec, block: BlockPlan, name: str, side: int) -> Iterator[Layer]:
    paths = ("shift.conv1", "shift.conv2") if block.shortcut.kind == "shift" else ("conv",)
    for path, conv in zip(paths, block.projections, strict=True):
        yield _conv(spec, f"{name}.{path}", conv, side)
    if block.layout.norm_last:
        yield _norm(spec, f"{name}.norm", block.out_channels, side)


def _se(spec: NetSpec, name: str, channels: int) -> Iterator[Layer]:
    assert spec.se is not None
    hidden = max(1, channels // spec.se.reduction)
    for part, c_in, c_out in (("squeeze", channels, hidden), ("excite", hidden, channels)):
        params = c_in * c_out + c_out * spec.se.bias
        yield Layer(name=f"{name}.{part}", kind="linear", shape=(c_out, 1, 1), params=params, macs=c_in * c_out)


def _eca(eca: ECASpec, name: str, channels: int) -> Layer:
    kernel = eca.kernel_of(channels)
    return Layer(name=name, kind=f"conv {kernel}", shape=(1, channels, 1), params=kernel, macs=kernel * channels)


def _conv(spec: NetSpec, name: str, conv: ConvPlan, side: int) -> Layer:
    groups = f", {conv.groups} groups" if conv.groups > 1 else ""
    return Layer(
        name=name,
        kind=f"conv {conv.kernel}x{conv.kernel}{groups}",
        shape=(conv.out_channels, side, side),
        params=conv.weights + conv.out_channels * spec.conv_bias,
        macs=conv.weights * side * side,
    )


def _norm(spec: NetSpec, name: str, channels: int, side: int) -> Layer:
    return Layer(name=name, kind="norm", shape=(channels, side, side), params=channels * (1 + spec.norm.gain))
