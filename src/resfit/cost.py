"""The price of a NetSpec: trainable parameters, MACs, activation bytes, layer by layer. Nothing is built.

A layer's name is the qualified name of the module that `build` makes for it, so the two can be held against each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from resfit.spec import BlockPlan, NetSpec, downsampled


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One priced layer, for one image: trainable parameters, multiply-accumulates, output [channels, height, width]."""

    name: str
    kind: str
    shape: tuple[int, int, int]
    params: int
    macs: int = 0
    frozen: int = 0

    @property
    def activation_bytes(self) -> int:
        """Bytes of the output in fp32."""
        channels, height, width = self.shape
        return 4 * channels * height * width


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a network costs. `macs` counts convolutions and linear layers; `frozen` values are not trained."""

    layers: tuple[Layer, ...]

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return sum(layer.params for layer in self.layers)

    @property
    def frozen(self) -> int:
        """Filter values that are set once and not trained (a whitening stem's)."""
        return sum(layer.frozen for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image's forward pass."""
        return sum(layer.macs for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Bytes of all layers' outputs for one image, fp32."""
        return sum(layer.activation_bytes for layer in self.layers)


def cost(spec: NetSpec) -> Cost:
    """Price `spec`, exactly: `cost(spec).params` is the sum of p.numel() over `build(spec).parameters()`."""
    return Cost(layers=tuple(_layers(spec)))


def _layers(spec: NetSpec) -> Iterator[Layer]:
    side, _ = spec.sizes()
    yield from _stem(spec, side)
    channels = spec.stem.channels
    for i, j, block in spec.plan():
        yield from _block(spec, block, f"stages.{i}.{j}", side)
        side, channels = downsampled(side, block), block.out_channels
    if spec.final_norm:
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
    yield _conv(spec, "stem.conv", spec.input.channels, stem.channels, stem.kernel, side)
    if not spec.preact:
        yield _norm(spec, "stem.norm", stem.channels, side)


def _block(spec: NetSpec, block: BlockPlan, name: str, side: int) -> Iterator[Layer]:
    """The layers of one block whose input map has `side` pixels a side."""
    out = downsampled(side, block)
    # A max-pool follows the convolution that would carry the stride, so that one works at the input's size.
    conv_out = side if block.downsample == "maxpool" else out
    wide, narrow = block.out_channels, block.channels
    if block.kind in ("basic", "preact"):
        convs = [(block.in_channels, narrow, block.kernel, conv_out, out), (narrow, narrow, block.kernel, out, out)]
    else:
        convs = [
            (block.in_channels, narrow, 1, side, side),
            (narrow, narrow, block.kernel, conv_out, out),
            (narrow, wide, 1, out, out),
        ]
    incoming, incoming_side = block.in_channels, side
    for n, (c_in, c_out, kernel, conv_side, next_side) in enumerate(convs, 1):
        if block.preact:
            yield _norm(spec, f"{name}.norm{n}", incoming, incoming_side)
        yield _conv(spec, f"{name}.conv{n}", c_in, c_out, kernel, conv_side)
        incoming, incoming_side = c_out, next_side
        if not block.preact:
            yield _norm(spec, f"{name}.norm{n}", c_out, incoming_side)
    if spec.se:
        yield from _se(spec, name, wide)
    if block.projects and block.shortcut.kind == "conv":
        yield _conv(spec, f"{name}.shortcut.conv", block.in_channels, wide, block.shortcut.kernel, out)
        if not block.preact:
            yield _norm(spec, f"{name}.shortcut.norm", wide, out)


def _se(spec: NetSpec, name: str, channels: int) -> Iterator[Layer]:
    assert spec.se is not None
    hidden = max(1, channels // spec.se.reduction)
    for part, c_in, c_out in (("squeeze", channels, hidden), ("excite", hidden, channels)):
        params = c_in * c_out + c_out * spec.se.bias
        yield Layer(name=f"{name}.se.{part}", kind="linear", shape=(c_out, 1, 1), params=params, macs=c_in * c_out)


def _conv(spec: NetSpec, name: str, c_in: int, c_out: int, kernel: int, side: int) -> Layer:
    size = c_in * c_out * kernel**2
    return Layer(
        name=name,
        kind=f"conv {kernel}x{kernel}",
        shape=(c_out, side, side),
        params=size + c_out * spec.conv_bias,
        macs=size * side * side,
    )


def _norm(spec: NetSpec, name: str, channels: int, side: int) -> Layer:
    return Layer(name=name, kind="norm", shape=(channels, side, side), params=channels * (1 + spec.norm.gain))
