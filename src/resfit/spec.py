"""NetSpec: what a residual network is, as frozen data. Validated when made; priced by `cost`; built by `build`.

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

from resfit.errors import BadField
from resfit.fields import Config, read_yaml, unwritten

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
    """Where a block kind has its norms and activations; between two convolutions it has one of each.

    A norm comes ahead of the first convolution (`norm_first`) or follows the last (`norm_last`), or both; an activation
    comes ahead of the first convolution (`act_first`) or follows the addition (`act_last`). A bottleneck has three
    convolutions, the outer ones 1 x 1; the others have two.
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
    """The images: `channels` planes of `size` x `size` pixels."""

    channels: int = 3
    size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("channels", self.channels, 1, 64)
        _check_range("size", self.size, 4, 1024)


@dataclass(frozen=True, kw_only=True)
class StemSpec(Config):
    """The layer ahead of the stages.

    conv: convolution, norm, activation (the convolution alone ahead of preact blocks). whiten: convolution with frozen
    patch-whitening filters and a trained bias, activation; its channels are 2 x input channels x kernel² (Jordan 2024,
    airbench); `pad` surrounds the image with zeros, so that the map keeps its side.
    """

    kind: Literal["conv", "whiten"] = "conv"
    channels: int = 64
    kernel: int = 3
    stride: int = 1
    pad: bool = unwritten(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("channels", self.channels, 1, 65_536)
        _check_range("stride", self.stride, 1, 4)
        if self.kind == "conv":
            if self.pad:
                raise BadField("a stem of kind conv is padded anyhow", "pad", "leave it out")
            _check_kernel("kernel", self.kernel)
        else:
            _check_range("kernel", self.kernel, 1, 15)

    def whitening_filters(self, channels: int) -> int:
        """Those of a whitening stem for images of so many channels: two for each value of a patch."""
        return 2 * channels * self.kernel**2


@dataclass(frozen=True, kw_only=True)
class ShortcutSpec(Config):
    """How a block that changes shape brings its input to its output.

    conv: a convolution of `kernel` (K_i), and a norm in all but preact blocks. shift: two 1 x 1 convolutions, half of
    the channels each, the second of the map moved by one pixel, and a norm (Gastaldi 2017). pad: strided identity with
    zero-padded channels, free of parameters (He et al. 2015, option A). avg-pad: the same of the average-pooled map
    (Han et al. 2017). late: the identity of what the block's first convolution has brought to the new shape, behind its
    norm and activation; no parameters (airbench96, Jordan 2024).
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
        """Whether it has no parameters: new channels are zeros."""
        return self.kind in ("pad", "avg-pad")


@dataclass(frozen=True, kw_only=True)
class StageSpec(Config):
    """`blocks` (B_i) residual blocks of `channels` (C_i, before expansion) with convolutions of `kernel` (F_i).

    The first block carries the stride: 1 in the first stage and 2 in the others unless said. `block`, `shortcut` and
    `downsample` override the network's own. `inner` is the width between a block's convolutions, if not `channels`.
    """

    blocks: int
    channels: int
    stride: int | None = None
    kernel: int = 3
    block: BlockKind | None = None
    shortcut: ShortcutSpec | None = None
    downsample: Downsample | None = None
    inner: int | None = unwritten(None)

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
    """Squeeze-and-excitation on a block's residual (Hu et al. 2018): hidden width channels // reduction, at least 1."""

    reduction: int = 16
    bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("reduction", self.reduction, 1, 65_536)


@dataclass(frozen=True, kw_only=True)
class ECASpec(Config):
    """Efficient channel attention on a block's residual (Wang et al. 2020): a convolution over neighbouring channels.

    Without `kernel` each block takes the paper's for its channels C: (log2(C) + 1) / 2, up to the next odd number.
    """

    kernel: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel is not None:
            _check_kernel("kernel", self.kernel)

    def kernel_of(self, channels: int) -> int:
        """The kernel for so many channels."""
        near = int((math.log2(channels) + 1) / 2)
        return self.kernel or near + (near + 1) % 2


@dataclass(frozen=True, kw_only=True)
class WidenSpec(Config):
    """Channels that are gained evenly over all blocks (Han et al. 2017, PyramidNet's alpha).

    Block k of n has its stage's channels and k / n of `channels` more, in whole multiples of `multiple`, rounded down.
    """

    channels: int
    multiple: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("channels", self.channels, 1, 65_536)
        _check_range("multiple", self.multiple, 1, 1024)

    def gained(self, k: int, n: int) -> int:
        """Channels that block k of n, counted from 1, has more than its stage says."""
        return k * self.channels // (n * self.multiple) * self.multiple


@dataclass(frozen=True, kw_only=True)
class DropoutSpec(Config):
    """Rates. block: whole channels, after each norm on a block's residual. head: features, ahead of the classifier.

    path: a block's whole residual, image by image (stochastic depth, Huang et al. 2016); what is kept is scaled up, so
    that evaluation needs nothing. shakedrop: at that rate a residual is multiplied by a random number from -1 to 1 on
    the way forward and from 0 to 1 on the way back; evaluation takes the mean (Yamada et al. 2019). Both rates are the
    last block's and rise evenly from the first on.
    """

    block: float = 0.0
    head: float = 0.0
    path: float = unwritten(0.0)
    shakedrop: float = unwritten(0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("block", "head", "path", "shakedrop"):
            rate = getattr(self, name)
            if not 0.0 <= rate < 1.0:
                raise BadField(f"dropout rate {rate}", name, "give a number from 0 to below 1")
        if self.path and self.shakedrop:
            raise BadField(f"{self.shakedrop} beside path {self.path}", "shakedrop", "give one of the two")


@dataclass(frozen=True, kw_only=True)
class NormSpec(Config):
    """Batch normalization: `gain` trains a scale a channel; `momentum` is the weight of the newest batch."""

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
    """The pool ahead of the classifier: the whole map, or windows of `size` pixels (P) that tile it."""

    kind: Literal["avg", "max"] = "avg"
    size: int | Literal["global"] = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size != "global":
            _check_range("size", self.size, 1, 1024)


@dataclass(frozen=True, kw_only=True)
class HeadSpec(Config):
    """The linear classifier; its logits are multiplied by `scale`."""

    bias: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.scale < float("inf"):
            raise BadField(f"scale is {self.scale}", "scale", "give a number above 0")


@dataclass(frozen=True, kw_only=True)
class ConvPlan:
    """One convolution with padding kernel // 2, and the stride of the max-pool or blur that follows it (1: none)."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    groups: int = 1
    pool: int = 1
    blur: int = 1

    @property
    def weights(self) -> int:
        """Numbers in its filters."""
        return self.in_channels // self.groups * self.out_channels * self.kernel**2

    def sides(self, side: int) -> tuple[int, int]:
        """Side in pixels after the convolution, and after the pool; a max-pool rounds down, the others up."""
        conv = -(-side // self.stride)
        return conv, -(-(conv // self.pool) // self.blur)


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """One residual block with every override resolved: what `cost` prices and `build` builds."""

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
    drop: float  # the rate of the network's `dropout.path` or `dropout.shakedrop` that this block has

    @property
    def layout(self) -> BlockLayout:
        """Where it has its norms and activations."""
        return LAYOUTS[self.kind]

    @property
    def pool(self) -> int:
        """Stride of the max-pool that takes the block's; 1 where there is none."""
        return self.stride if self.downsample == "maxpool" else 1

    @property
    def blur(self) -> int:
        """Stride of the blur that takes the block's; 1 where there is none."""
        return self.stride if self.downsample == "blur" else 1

    @property
    def conv_stride(self) -> int:
        """The stride that is left to convolutions."""
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
        """The shortcut's convolutions, side by side on the pooled input; none where it has no parameters."""
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
        """Whether the block puts out another shape than it takes in."""
        return self.stride != 1 or self.in_channels != self.out_channels

    @property
    def late(self) -> bool:
        """Whether its shortcut begins behind its first convolution."""
        return self.shortcut.kind == "late" and self.shape_changes

    def side_after(self, side: int) -> int:
        """Side in pixels of the block's output."""
        for conv in self.convs:
            _, side = conv.sides(side)
        return side


@dataclass(frozen=True, kw_only=True)
class NetSpec(Config):
    """A residual network: stem, N stages of blocks, pool, linear classifier.

    A block puts out `expansion` times its channels: 4 for bottlenecks and 1 for the others unless said. `groups`
    divides a bottleneck's inner convolution (Xie et al. 2017, ResNeXt). With two `branches` a block's residual is their
    mean; in training, `mix: shake` weighs them at random, image by image, and anew on the way back (Gastaldi 2017).
    downsample maxpool, blur: convolutions keep the map, and a max-pool or a binomial blur (Zhang 2019) takes the
    stride.
    """

    stages: tuple[StageSpec, ...]
    input: InputSpec = InputSpec()
    stem: StemSpec = StemSpec()
    block: BlockKind = "basic"
    expansion: int | float | None = unwritten(None)
    groups: int = unwritten(1)
    branches: Literal[1, 2] = unwritten(1)
    mix: Literal["shake", "mean"] = unwritten("shake")
    widen: WidenSpec | None = unwritten(None)
    shortcut: ShortcutSpec = ShortcutSpec()
    downsample: Downsample = "stride"
    se: SESpec | None = None
    eca: ECASpec | None = unwritten(None)
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
        return cls.from_dict(read_yaml(Path(path)))

    def plan(self) -> Iterator[tuple[int, int, BlockPlan]]:
        """Every block in order, as (stage index, block index in the stage, plan)."""
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
        """Block j of stage i, the k-th of all blocks, counted from 1."""
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
        """The first block's, which says whether the stem has a norm and an activation."""
        return LAYOUTS[self.stages[0].block or self.block]

    @property
    def last_layout(self) -> BlockLayout:
        """The last block's, which says whether a norm and an activation follow the last stage."""
        return LAYOUTS[self.stages[-1].block or self.block]

    def sizes(self) -> tuple[int, tuple[int, ...]]:
        """Side in pixels of the map after the stem, and after each block in order."""
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
        """Side of the map that the classifier reads."""
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
            raise BadField("attention of two kinds", "eca", "give it or se")
        blocks = [block for _, _, block in self.plan()]
        if any(block.out_channels != block.channels * self._expansion(block.kind) for block in blocks):
            raise BadField(f"no whole number of channels x {self.expansion}", "expansion", "give one that makes it so")
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
                raise BadField("a late shortcut is for basic blocks of one branch", place, "use kind conv")

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
