"""NetSpec: the architecture of a residual network as frozen, validated data; `cost` prices it, `build` builds it.

The letters of the residual-network literature: N stages, B_i blocks and C_i channels in stage i, F_i the kernel of its
convolutions, K_i the kernel of its shortcuts, P the pool.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from resfit.errors import BadField, named
from resfit.fields import Config, omitted_at_default, read_yaml

BlockKind = Literal[
    "basic",
    "bottleneck",
    "preact",
    "preact-bottleneck",
    "act-first",
    "act-first-bottleneck",
    "pyramid",
    "pyramid-bottleneck",
]
Downsample = Literal["stride", "maxpool", "blur"]


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """Where a block kind has its norms and activations; there is always one of each between two convolutions.

    A norm precedes the first convolution (`norm_first`), follows the last (`norm_last`), or both. An activation
    precedes the first convolution (`act_first`) or follows the addition (`act_last`). A bottleneck has three
    convolutions, the outer ones 1 x 1; the other kinds have two.
    """

    norm_first: bool = False
    act_first: bool = False
    norm_last: bool = False
    act_last: bool = False
    bottleneck: bool = False


LAYOUTS: dict[BlockKind, BlockLayout] = {
    # He et al. 2015
    "basic": BlockLayout(norm_last=True, act_last=True),
    "bottleneck": BlockLayout(norm_last=True, act_last=True, bottleneck=True),
    # He et al. 2016b
    "preact": BlockLayout(norm_first=True, act_first=True),
    "preact-bottleneck": BlockLayout(norm_first=True, act_first=True, bottleneck=True),
    # He et al. 2016b, figure 4 (d); Gastaldi 2017
    "act-first": BlockLayout(act_first=True, norm_last=True),
    "act-first-bottleneck": BlockLayout(act_first=True, norm_last=True, bottleneck=True),
    # Han et al. 2017, PyramidNet
    "pyramid": BlockLayout(norm_first=True, norm_last=True),
    "pyramid-bottleneck": BlockLayout(norm_first=True, norm_last=True, bottleneck=True),
}


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise BadField(f"{name} is {value!r}", name, f"give a whole number from {low} to {high}")


def _check_kernel(name: str, value: int) -> None:
    if type(value) is not int or value % 2 == 0 or not 1 <= value <= 15:
        raise BadField(f"{name} is {value!r}", name, "give an odd number from 1 to 15")


@dataclass(frozen=True, kw_only=True)
class InputSpec(Config):
    """The input images. They are square.

    Attributes:
        channels: Number of colour channels: 1 for grey images, 3 for colour.
        size: Side in pixels. Images of another size are scaled to it when the data is loaded.
    """

    channels: int = 3
    size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("channels", self.channels, 1, 64)
        _check_range("size", self.size, 4, 1024)


@dataclass(frozen=True, kw_only=True)
class StemSpec(Config):
    """The layer between the images and the first stage.

    Attributes:
        kind: `conv`: a trained convolution with a norm and an activation; ahead of act-first and pyramid blocks it has
            only the norm, ahead of preact blocks neither. `whiten`: a convolution with frozen filters that whiten
            patches of the training images, a trained bias, and an activation (Jordan 2024, airbench).
        channels: Number of output channels. For `whiten` it has to be 2 x input channels x kernel².
        kernel: Side of the filters in pixels; odd for `conv`.
        stride: Stride of the convolution.
        pad: For `whiten` only: surround the image with zeros, so that at stride 1 the map is as large as the image. A
            `conv` stem always does.
    """

    kind: Literal["conv", "whiten"] = "conv"
    channels: int = 64
    kernel: int = 3
    stride: int = 1
    pad: bool = omitted_at_default(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("channels", self.channels, 1, 65_536)
        _check_range("stride", self.stride, 1, 4)
        if self.kind == "conv":
            if self.pad:
                raise BadField("a stem of kind conv is always padded", "pad", "leave it out")
            _check_kernel("kernel", self.kernel)
        else:
            _check_range("kernel", self.kernel, 1, 15)

    def whitening_filters(self, channels: int) -> int:
        """Return the filters of a whitening stem for images with `channels`: two per value of a patch."""
        return 2 * channels * self.kernel**2


@dataclass(frozen=True, kw_only=True)
class ShortcutSpec(Config):
    """The shortcut of blocks that change the shape. Other blocks add their input unchanged.

    Attributes:
        kind: `conv`: a convolution, followed by a norm except in preact blocks. `shift`: two 1 x 1 convolutions, each
            giving half of the channels, the second one of the map moved by one pixel; followed by a norm as `conv` is
            (Gastaldi 2017). `pad`: the strided input, with zeros for the new channels; no parameters (He et al. 2015,
            option A). `avg-pad`: as `pad`, but average-pooled instead of strided (Han et al. 2017). `late`: the output
            of the block's first convolution after its norm and activation; no parameters, and for basic blocks with one
            branch only (airbench96, Jordan 2024).
        kernel: Side of the filters of `conv` in pixels (K_i), odd. `shift` needs 1; the other kinds ignore it.
    """

    kind: Literal["conv", "pad", "shift", "avg-pad", "late"] = "conv"
    kernel: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_kernel("kernel", self.kernel)
        if self.kind == "shift" and self.kernel != 1:
            raise BadField(f"kernel is {self.kernel}", "kernel", "give 1, or another kind than shift")

    @property
    def free(self) -> bool:
        """Whether the shortcut has no parameters and pads new channels with zeros."""
        return self.kind in ("pad", "avg-pad")


@dataclass(frozen=True, kw_only=True)
class StageSpec(Config):
    """A stage: a sequence of residual blocks. The first one has the stage's stride.

    Attributes:
        blocks: Number of blocks (B_i).
        channels: Number of channels of the blocks (C_i), before the network's `expansion`.
        stride: Stride of the first block. `null`: 1 in the first stage, 2 in all others.
        kernel: Side of the filters in pixels (F_i), odd. In bottlenecks that of the middle convolution; the outer two
            are 1 x 1.
        block: Kind of the stage's blocks. `null`: the network's `block`.
        shortcut: The stage's shortcut. `null`: the network's `shortcut`.
        downsample: How the stage's stride is taken. `null`: the network's `downsample`.
        inner: Number of channels between a block's convolutions. `null`: the block's own `channels`. Where a `late`
            shortcut changes the shape, its output channels are used instead.
    """

    blocks: int
    channels: int
    stride: int | None = None
    kernel: int = 3
    block: BlockKind | None = None
    shortcut: ShortcutSpec | None = None
    downsample: Downsample | None = None
    inner: int | None = omitted_at_default(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("blocks", self.blocks, 1, 1000)
        _check_range("channels", self.channels, 1, 65_536)
        _check_kernel("kernel", self.kernel)
        if self.stride is not None:
            _check_range("stride", self.stride, 1, 8)
        if self.inner is not None:
            _check_range("inner", self.inner, 1, 65_536)


@dataclass(frozen=True, kw_only=True)
class SESpec(Config):
    """Squeeze-and-excitation (Hu et al. 2018): gates computed from all channel means scale a block's residual.

    Attributes:
        reduction: The hidden layer has channels // reduction units, at least 1.
        bias: Whether the two linear layers have biases.
    """

    reduction: int = 16
    bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("reduction", self.reduction, 1, 65_536)


@dataclass(frozen=True, kw_only=True)
class ECASpec(Config):
    """Efficient channel attention (Wang et al. 2020): each gate is computed from the means of neighbouring channels.

    Attributes:
        kernel: Number of neighbouring channels that a gate is made from, odd. `null`: the paper's choice for a block of
            C channels, (log2(C) + 1) / 2 rounded down, plus 1 where that is even.
    """

    kernel: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel is not None:
            _check_kernel("kernel", self.kernel)

    def kernel_of(self, channels: int) -> int:
        """Return the kernel size for this number of channels."""
        near = int((math.log2(channels) + 1) / 2)
        return self.kernel or near + (near + 1) % 2


@dataclass(frozen=True, kw_only=True)
class WidenSpec(Config):
    """Widths that grow linearly from block to block through the whole network (Han et al. 2017, PyramidNet).

    Attributes:
        channels: Channels that the last block has in addition to its stage's (the paper's alpha). Block k of n has k /
            n of them.
        multiple: The added channels are rounded down to a multiple of this number.
    """

    channels: int
    multiple: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("channels", self.channels, 1, 65_536)
        _check_range("multiple", self.multiple, 1, 1024)

    def gained(self, k: int, n: int) -> int:
        """Return the channels that block k of n, counted from 1, has in addition to its stage's."""
        return k * self.channels // (n * self.multiple) * self.multiple


@dataclass(frozen=True, kw_only=True)
class DropoutSpec(Config):
    """Dropout in training. Each probability is at least 0 (off) and below 1.

    Attributes:
        block: Probability that a channel is dropped, after each norm that follows a convolution of a block's residual.
        head: Probability that a feature is dropped ahead of the classifier.
        path: Probability that the last block drops an image's whole residual (stochastic depth, Huang et al. 2016). It
            rises evenly from the first block to the last. Kept residuals are scaled up, so evaluation needs no change.
        shakedrop: Probability that the last block multiplies an image's residual by a random number, from -1 to 1 on
            the way forward and another from 0 to 1 on the way back. It rises evenly from the first block to the last.
            Evaluation takes the mean factor, 1 - probability (Yamada et al. 2019). Not together with `path`.
    """

    block: float = 0.0
    head: float = 0.0
    path: float = omitted_at_default(0.0)
    shakedrop: float = omitted_at_default(0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("block", "head", "path", "shakedrop"):
            rate = getattr(self, name)
            if not 0.0 <= rate < 1.0:
                raise BadField(f"dropout rate {rate}", name, "give a number from 0 to below 1")
        if self.path and self.shakedrop:
            raise BadField(f"{self.shakedrop} together with path {self.path}", "shakedrop", "give one of the two")


@dataclass(frozen=True, kw_only=True)
class NormSpec(Config):
    """Batch normalization. Each channel always has a trained shift.

    Attributes:
        gain: Whether each channel also has a trained scale; without it the scale stays 1.
        momentum: Weight of the newest batch in the running mean and variance, which evaluation uses. Above 0, at most
            1.
        eps: Added to the variance, so that nothing is divided by zero.
    """

    gain: bool = True
    momentum: float = 0.1
    eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.momentum <= 1.0:
            raise BadField(f"momentum is {self.momentum}", "momentum", "give a number above 0, at most 1")
        if not 0.0 < self.eps < 1.0:
            raise BadField(f"eps is {self.eps}", "eps", "give a number between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class PoolSpec(Config):
    """The pooling between the last stage and the classifier.

    Attributes:
        kind: `avg`: the mean of each window. `max`: its maximum.
        size: `global`: one window, the whole map. A number: the side in pixels (P) of windows that tile the map; pixels
            beyond the last whole window are left out.
    """

    kind: Literal["avg", "max"] = "avg"
    size: int | Literal["global"] = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size != "global":
            _check_range("size", self.size, 1, 1024)


@dataclass(frozen=True, kw_only=True)
class HeadSpec(Config):
    """The linear classifier.

    Attributes:
        bias: Whether it has a bias.
        scale: Factor that the logits are multiplied by, above 0.
    """

    bias: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.scale < float("inf"):
            raise BadField(f"scale is {self.scale}", "scale", "give a number above 0")


@dataclass(frozen=True, kw_only=True)
class ConvPlan:
    """One convolution with padding kernel // 2, and the stride of the max-pool or blur after it (1: none)."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    groups: int = 1
    pool: int = 1
    blur: int = 1

    @property
    def weights(self) -> int:
        """The number of weights in its filters."""
        return self.in_channels // self.groups * self.out_channels * self.kernel**2

    def sides(self, side: int) -> tuple[int, int]:
        """Return the side in pixels after the convolution and after the pool; a max-pool rounds down, the others up."""
        conv = -(-side // self.stride)
        return conv, -(-(conv // self.pool) // self.blur)


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """One residual block with all defaults and overrides resolved: what `cost` prices and `build` builds."""

    kind: BlockKind
    in_channels: int
    channels: int
    out_channels: int  # after expansion
    inner: int  # between the convolutions of a branch
    kernel: int
    stride: int
    groups: int
    branches: int
    downsample: Downsample
    shortcut: ShortcutSpec
    drop: float  # this block's rate of `dropout.path` or `dropout.shakedrop`

    @property
    def layout(self) -> BlockLayout:
        """Where the block has its norms and activations."""
        return LAYOUTS[self.kind]

    @property
    def pool(self) -> int:
        """The stride of the max-pool, if it does the block's downsampling, else 1."""
        return self.stride if self.downsample == "maxpool" else 1

    @property
    def blur(self) -> int:
        """The stride of the blur, if it does the block's downsampling, else 1."""
        return self.stride if self.downsample == "blur" else 1

    @property
    def conv_stride(self) -> int:
        """The stride of the strided convolutions, if they do the block's downsampling, else 1."""
        return self.stride if self.downsample == "stride" else 1

    @cached_property
    def convs(self) -> tuple[ConvPlan, ...]:
        """The convolutions of each residual branch, in order."""
        c_in, wide, kernel = self.in_channels, self.out_channels, self.kernel
        narrow = wide if self.late else self.inner
        stride, pool, blur = self.conv_stride, self.pool, self.blur
        if not self.layout.bottleneck:
            return (
                ConvPlan(in_channels=c_in, out_channels=narrow, kernel=kernel, stride=stride, pool=pool, blur=blur),
                ConvPlan(in_channels=narrow, out_channels=wide, kernel=kernel),
            )
        inner = ConvPlan(
            in_channels=narrow,
            out_channels=narrow,
            kernel=kernel,
            stride=stride,
            groups=self.groups,
            pool=pool,
            blur=blur,
        )
        return (
            ConvPlan(in_channels=c_in, out_channels=narrow, kernel=1),
            inner,
            ConvPlan(in_channels=narrow, out_channels=wide, kernel=1),
        )

    @property
    def projections(self) -> tuple[ConvPlan, ...]:
        """The shortcut's parallel convolutions on the pooled input; empty if it has no parameters."""
        c_in, c_out, stride = self.in_channels, self.out_channels, self.conv_stride
        if self.shortcut.free or self.late or (stride == 1 and c_in == c_out):
            return ()
        widths = (c_out,) if self.shortcut.kind == "conv" else (c_out // 2, c_out - c_out // 2)
        return tuple(
            ConvPlan(in_channels=c_in, out_channels=width, kernel=self.shortcut.kernel, stride=stride)
            for width in widths
        )

    @property
    def shape_changes(self) -> bool:
        """Whether the block's output shape differs from its input shape."""
        return self.stride != 1 or self.in_channels != self.out_channels

    @property
    def late(self) -> bool:
        """Whether the shortcut starts after the first convolution."""
        return self.shortcut.kind == "late" and self.shape_changes

    def side_after(self, side: int) -> int:
        """Return the side in pixels of the block's output."""
        for conv in self.convs:
            _, side = conv.sides(side)
        return side


@dataclass(frozen=True, kw_only=True)
class NetSpec(Config):
    """A residual network: a stem, stages of residual blocks, a pool, and a linear classifier.

    Attributes:
        stages: The stages in order, 1 to 16 of them.
        input: Channels and size of the images.
        stem: The layer ahead of the stages.
        block: Kind of the blocks. `basic`: two convolutions, each followed by a norm, and an activation between them
            and after the addition (He et al. 2015). `preact`: a norm and an activation ahead of each convolution (He et
            al. 2016b). `act-first`: as `basic`, but with an activation ahead of the first convolution and none after
            the addition (He et al. 2016b, figure 4 (d); Gastaldi 2017). `pyramid`: a norm ahead of the first
            convolution and after each of them, an activation only between them (Han et al. 2017). `bottleneck` is
            `basic` with three convolutions, the outer two 1 x 1; the other kinds that end on it likewise.
        expansion: A block puts out this many times its `channels`; from 1/64 to 64. `null`: 4 for bottlenecks, 1 for
            the other kinds.
        groups: Groups of a bottleneck's middle convolution (Xie et al. 2017, ResNeXt). It has to divide the channels.
        branches: Number of residual branches of a block. The residual of two is their mean.
        mix: How two branches are mixed in training. `shake`: with random weights for each image, drawn anew for the way
            back (Gastaldi 2017). `mean`: evenly, as in evaluation.
        widen: Widths that grow from block to block. `null`: they do not.
        shortcut: The shortcut of blocks that change the shape.
        downsample: What takes a block's stride. `stride`: its first convolution, or a bottleneck's middle one.
            `maxpool`: a max-pool behind that convolution. `blur`: a 3 x 3 binomial blur behind it (as in
            Zhang 2019, who blurs after norm and activation). The
            shortcut's input is strided, pooled or blurred likewise.
        se: Squeeze-and-excitation on each block's residual. `null`: none.
        eca: Efficient channel attention on each block's residual. `null`: none. Not together with `se`.
        conv_bias: Whether convolutions have biases. A whitening stem always has one.
        norm: The batch norms.
        dropout: Dropout in the blocks and ahead of the classifier.
        pool: The pooling ahead of the classifier.
        head: The classifier.
        activation: The activation everywhere but within `se` and `eca`.
        num_classes: Number of classes. For an image folder the number of its class folders replaces it.
    """

    stages: tuple[StageSpec, ...]
    input: InputSpec = InputSpec()
    stem: StemSpec = StemSpec()
    block: BlockKind = "basic"
    expansion: int | float | None = omitted_at_default(None)
    groups: int = omitted_at_default(1)
    branches: Literal[1, 2] = omitted_at_default(1)
    mix: Literal["shake", "mean"] = omitted_at_default("shake")
    widen: WidenSpec | None = omitted_at_default(None)
    shortcut: ShortcutSpec = ShortcutSpec()
    downsample: Downsample = "stride"
    se: SESpec | None = None
    eca: ECASpec | None = omitted_at_default(None)
    conv_bias: bool = False
    norm: NormSpec = NormSpec()
    dropout: DropoutSpec = DropoutSpec()
    pool: PoolSpec = PoolSpec()
    head: HeadSpec = HeadSpec()
    activation: Literal["relu", "gelu", "silu"] = "relu"
    num_classes: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "stages", tuple(self.stages))
        _check_range("num_classes", self.num_classes, 2, 100_000)
        if not 1 <= len(self.stages) <= 16:
            raise BadField(f"{len(self.stages)} stages", "stages", "give 1 to 16")
        self._check_stem()
        self._check_blocks()
        self._check_shortcuts()
        self._check_sizes()

    @classmethod
    def from_yaml(cls, path: str | Path) -> NetSpec:
        """Read a spec file."""
        data = read_yaml(Path(path))
        with named(path):
            return cls.from_dict(data)

    def plan(self) -> Iterator[tuple[int, int, BlockPlan]]:
        """Iterate over all blocks in order, as (stage index, block index in the stage, plan)."""
        return iter(self._planned)

    @cached_property
    def _planned(self) -> tuple[tuple[int, int, BlockPlan], ...]:
        return tuple(self._plan())

    def _plan(self) -> Iterator[tuple[int, int, BlockPlan]]:
        in_channels, k, blocks = self.stem.channels, 0, sum(stage.blocks for stage in self.stages)
        for i, stage in enumerate(self.stages):
            for j in range(stage.blocks):
                k += 1
                block = self._block(i, j, in_channels, k, blocks)
                yield i, j, block
                in_channels = block.out_channels

    def _block(self, i: int, j: int, in_channels: int, k: int, blocks: int) -> BlockPlan:
        """Return the plan of block j of stage i, which is the k-th of all blocks, counted from 1."""
        stage = self.stages[i]
        kind = stage.block or self.block
        stage_stride = stage.stride if stage.stride is not None else (1 if i == 0 else 2)
        channels = stage.channels + (self.widen.gained(k, blocks) if self.widen else 0)
        return BlockPlan(
            kind=kind,
            in_channels=in_channels,
            channels=channels,
            out_channels=int(channels * self._expansion(kind)),
            inner=stage.inner or channels,
            kernel=stage.kernel,
            stride=stage_stride if j == 0 else 1,
            groups=self.groups,
            branches=self.branches,
            downsample=stage.downsample or self.downsample,
            shortcut=stage.shortcut or self.shortcut,
            drop=max(self.dropout.path, self.dropout.shakedrop) * k / blocks,
        )

    def _expansion(self, kind: BlockKind) -> float:
        if self.expansion is not None:
            return self.expansion
        return 4 if LAYOUTS[kind].bottleneck else 1

    @property
    def first_layout(self) -> BlockLayout:
        """The first block's layout, which decides whether the stem has a norm and an activation."""
        return LAYOUTS[self.stages[0].block or self.block]

    @property
    def last_layout(self) -> BlockLayout:
        """The last block's layout, which decides whether a norm and an activation follow the last stage."""
        return LAYOUTS[self.stages[-1].block or self.block]

    def sizes(self) -> tuple[int, tuple[int, ...]]:
        """Return the side in pixels of the feature map after the stem, and after each block in order."""
        return self._sizes

    @cached_property
    def _sizes(self) -> tuple[int, tuple[int, ...]]:
        side = stem = _stem_side(self.input.size, self.stem)
        after = []
        for _, _, block in self.plan():
            side = block.side_after(side)
            after.append(side)
        return stem, tuple(after)

    @property
    def pooled_side(self) -> int:
        """The side in pixels of the pooled map that the classifier reads."""
        side = self.sizes()[1][-1]
        return 1 if self.pool.size == "global" else side // self.pool.size

    def _check_stem(self) -> None:
        if self.stem.kind == "whiten":
            needed = self.stem.whitening_filters(self.input.channels)
            if self.stem.channels != needed:
                raise BadField(
                    f"{self.stem.channels} channels",
                    "stem.channels",
                    f"a whitening stem of kernel {self.stem.kernel} on {self.input.channels} channels has {needed}",
                )

    def _check_blocks(self) -> None:
        _check_range("groups", self.groups, 1, 65_536)
        if self.expansion is not None and not 1 / 64 <= self.expansion <= 64:
            raise BadField(f"expansion is {self.expansion}", "expansion", "give a number from 1/64 to 64")
        if self.se and self.eca:
            raise BadField("two kinds of attention", "eca", "give either eca or se")
        blocks = [block for _, _, block in self.plan()]
        if any(block.out_channels != block.channels * self._expansion(block.kind) for block in blocks):
            raise BadField(
                f"channels x {self.expansion} is not a whole number", "expansion", "give one that makes it whole"
            )
        grouped = [block.inner for block in blocks if block.layout.bottleneck]
        if self.groups > 1 and not grouped:
            raise BadField(f"{self.groups} groups", "groups", "give 1, or a bottleneck block")
        if uneven := [channels for channels in grouped if channels % self.groups]:
            raise BadField(f"{uneven[0]} channels in {self.groups} groups", "groups", "give a divisor of the channels")

    def _check_shortcuts(self) -> None:
        for i, _, block in self.plan():
            kind, c_in, c_out = block.shortcut.kind, block.in_channels, block.out_channels
            place = f"stages.{i}.shortcut"
            if block.shortcut.free and c_in > c_out:
                problem = f"a {kind} shortcut cannot go from {c_in} to {c_out} channels"
                raise BadField(problem, place, "widen the stage, or use kind conv")
            if kind == "shift" and c_out < 2:
                raise BadField("a shift shortcut cannot halve one channel", place, "widen the stage, or use kind conv")
            if kind == "late" and (block.kind != "basic" or block.branches > 1):
                raise BadField("a late shortcut only works with basic blocks of one branch", place, "use kind conv")

    def _check_sizes(self) -> None:
        stem, after = self.sizes()
        if stem < 1:
            raise BadField(f"kernel {self.stem.kernel} is larger than the image", "stem.kernel", "make it smaller")
        if 0 in after:
            stage = [i for i, _, _ in self.plan()][after.index(0)]
            raise BadField("nothing is left of the image", f"stages.{stage}.stride", "use fewer strided stages")
        if self.pool.size != "global" and self.pool.size > after[-1]:
            raise BadField(
                f"a window of {self.pool.size} pixels on a {after[-1]}x{after[-1]} map",
                "pool.size",
                f"give at most {after[-1]}, or global",
            )


def _stem_side(side: int, stem: StemSpec) -> int:
    unpadded = stem.kind == "whiten" and not stem.pad
    return (side - stem.kernel) // stem.stride + 1 if unpadded else -(-side // stem.stride)
