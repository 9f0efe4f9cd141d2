"""NetSpec: what a residual network is, as frozen data. Validated when made; priced by `cost`; built by `build`.

The letters of the residual-network literature: N stages, B_i blocks and C_i channels in stage i, F_i the kernel of its
convolutions, K_i the kernel of its shortcuts, P the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resfit.errors import BadField
from resfit.fields import from_plain, read_yaml, to_plain, write_yaml

BlockKind = Literal["basic", "bottleneck", "preact", "preact-bottleneck"]
Downsample = Literal["stride", "maxpool"]

EXPANSION: dict[str, int] = {"basic": 1, "bottleneck": 4, "preact": 1, "preact-bottleneck": 4}


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise BadField(f"{name} is {value!r}", name, f"give a whole number from {low} to {high}")


def _check_kernel(name: str, value: int) -> None:
    if type(value) is not int or value % 2 == 0 or not 1 <= value <= 15:
        raise BadField(f"{name} is {value!r}", name, "give an odd number from 1 to 15")


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The images: `channels` planes of `size` x `size` pixels."""

    channels: int = 3
    size: int = 32

    def __post_init__(self) -> None:
        _check_range("channels", self.channels, 1, 64)
        _check_range("size", self.size, 4, 1024)


@dataclass(frozen=True, kw_only=True)
class StemSpec:
    """The layer ahead of the stages.

    conv: convolution, norm, activation (the convolution alone ahead of preact blocks). whiten: convolution with frozen
    patch-whitening filters and a trained bias, no padding, activation; its channels are 2 x input channels x kernel²
    (Jordan 2024, airbench).
    """

    kind: Literal["conv", "whiten"] = "conv"
    channels: int = 64
    kernel: int = 3
    stride: int = 1

    def __post_init__(self) -> None:
        _check_range("channels", self.channels, 1, 65_536)
        _check_range("stride", self.stride, 1, 4)
        if self.kind == "conv":
            _check_kernel("kernel", self.kernel)
        else:
            _check_range("kernel", self.kernel, 1, 15)


@dataclass(frozen=True, kw_only=True)
class ShortcutSpec:
    """How a block that changes shape brings its input to its output.

    conv: a convolution of `kernel` (K_i), and a norm in all but preact blocks. pad: strided identity with zero-padded
    channels, free of parameters (He et al. 2015, option A).
    """

    kind: Literal["conv", "pad"] = "conv"
    kernel: int = 1

    def __post_init__(self) -> None:
        _check_kernel("kernel", self.kernel)


@dataclass(frozen=True, kw_only=True)
class StageSpec:
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
    inner: int | None = None

    def __post_init__(self) -> None:
        _check_range("blocks", self.blocks, 1, 1000)
        _check_range("channels", self.channels, 1, 65_536)
        _check_kernel("kernel", self.kernel)
        if self.stride is not None:
            _check_range("stride", self.stride, 1, 8)
        if self.inner is not None:
            _check_range("inner", self.inner, 1, 65_536)


@dataclass(frozen=True, kw_only=True)
class SESpec:
    """Squeeze-and-excitation on a block's residual (Hu et al. 2018): hidden width channels // reduction, at least 1."""

    reduction: int = 16
    bias: bool = False

    def __post_init__(self) -> None:
        _check_range("reduction", self.reduction, 1, 65_536)


@dataclass(frozen=True, kw_only=True)
class DropoutSpec:
    """Rates. block: whole channels, after each norm on a block's residual. head: features, ahead of the classifier."""

    block: float = 0.0
    head: float = 0.0

    def __post_init__(self) -> None:
        for name, rate in (("block", self.block), ("head", self.head)):
            if not 0.0 <= rate < 1.0:
                raise BadField(f"dropout rate {rate}", name, "give a number from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class NormSpec:
    """Batch normalization: `gain` trains a scale a channel; `momentum` is the weight of the newest batch."""

    gain: bool = True
    momentum: float = 0.1
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if not 0.0 < self.momentum <= 1.0:
            raise BadField(f"momentum is {self.momentum}", "momentum", "give a number above 0, at most 1")
        if not 0.0 < self.eps < 1.0:
            raise BadField(f"eps is {self.eps}", "eps", "give a number between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class PoolSpec:
    """The pool ahead of the classifier: the whole map, or windows of `size` pixels (P) that tile it."""

    kind: Literal["avg", "max"] = "avg"
    size: int | Literal["global"] = "global"

    def __post_init__(self) -> None:
        if self.size != "global":
            _check_range("size", self.size, 1, 1024)


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """The linear classifier; its logits are multiplied by `scale`."""

    bias: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.scale < float("inf"):
            raise BadField(f"scale is {self.scale}", "scale", "give a number above 0")


@dataclass(frozen=True, kw_only=True)
class ConvPlan:
    """One convolution with padding kernel // 2, and the side of the max-pool that follows it (1: none)."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    pool: int = 1

    def sides(self, side: int) -> tuple[int, int]:
        """Side in pixels after the convolution, which rounds up, and after the max-pool, which rounds down."""
        conv = -(-side // self.stride)
        return conv, conv // self.pool


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """One residual block with every override resolved: what `cost` prices and `build` builds."""

    kind: BlockKind
    in_channels: int
    channels: int
    inner: int
    kernel: int
    stride: int
    downsample: Downsample
    shortcut: ShortcutSpec

    @property
    def out_channels(self) -> int:
        """Channels after expansion."""
        return self.channels * EXPANSION[self.kind]

    @property
    def preact(self) -> bool:
        """Whether norm and activation come ahead of each convolution (He et al. 2016b)."""
        return self.kind.startswith("preact")

    @property
    def pool(self) -> int:
        """Side of the max-pool that takes the block's stride; 1 where convolutions take it."""
        return self.stride if self.downsample == "maxpool" else 1

    @property
    def convs(self) -> tuple[ConvPlan, ...]:
        """The convolutions of the residual branch, in order."""
        stride, pool = self.stride // self.pool, self.pool
        c_in, narrow, wide, kernel = self.in_channels, self.inner, self.out_channels, self.kernel
        if self.kind in ("basic", "preact"):
            return (
                ConvPlan(in_channels=c_in, out_channels=narrow, kernel=kernel, stride=stride, pool=pool),
                ConvPlan(in_channels=narrow, out_channels=wide, kernel=kernel),
            )
        return (
            ConvPlan(in_channels=c_in, out_channels=narrow, kernel=1),
            ConvPlan(in_channels=narrow, out_channels=narrow, kernel=kernel, stride=stride, pool=pool),
            ConvPlan(in_channels=narrow, out_channels=wide, kernel=1),
        )

    @property
    def projection(self) -> ConvPlan | None:
        """The shortcut's convolution, which works on the pooled input; None where the shortcut has no parameters."""
        stride = self.stride // self.pool
        if self.shortcut.kind == "pad" or (stride == 1 and self.in_channels == self.out_channels):
            return None
        return ConvPlan(
            in_channels=self.in_channels, out_channels=self.out_channels, kernel=self.shortcut.kernel, stride=stride
        )

    @property
    def shape_changes(self) -> bool:
        """Whether the block puts out another shape than it takes in."""
        return self.stride != 1 or self.in_channels != self.out_channels

    def side_after(self, side: int) -> int:
        """Side in pixels of the block's output."""
        for conv in self.convs:
            _, side = conv.sides(side)
        return side


@dataclass(frozen=True, kw_only=True)
class NetSpec:
    """A residual network: stem, N stages of blocks, pool, linear classifier."""

    stages: tuple[StageSpec, ...]
    input: InputSpec = InputSpec()
    stem: StemSpec = StemSpec()
    block: BlockKind = "basic"
    shortcut: ShortcutSpec = ShortcutSpec()
    downsample: Downsample = "stride"
    se: SESpec | None = None
    conv_bias: bool = False
    norm: NormSpec = NormSpec()
    dropout: DropoutSpec = DropoutSpec()
    pool: PoolSpec = PoolSpec()
    head: HeadSpec = HeadSpec()
    activation: Literal["relu", "gelu", "silu"] = "relu"
    num_classes: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        _check_range("num_classes", self.num_classes, 2, 100_000)
        if not 1 <= len(self.stages) <= 16:
            raise BadField(f"{len(self.stages)} stages", "stages", "give 1 to 16")
        self._check_stem()
        self._check_shortcuts()
        self._check_sizes()

    @classmethod
    def from_dict(cls, data: object, where: str = "") -> NetSpec:
        """Build from plain data; raises BadInput that names the field and says what is allowed."""
        return from_plain(cls, data, where)

    @classmethod
    def from_yaml(cls, path: str | Path) -> NetSpec:
        """Read a spec file."""
        return cls.from_dict(read_yaml(Path(path)))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` turns back into an equal spec."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    def to_yaml(self) -> str:
        """YAML text that `from_yaml` reads back."""
        return write_yaml(self)

    def plan(self) -> Iterator[tuple[int, int, BlockPlan]]:
        """Every block in order, as (stage index, block index in the stage, plan)."""
        in_channels = self.stem.channels
        for i, stage in enumerate(self.stages):
            for j in range(stage.blocks):
                block = self._block(i, j, in_channels)
                yield i, j, block
                in_channels = block.out_channels

    def _block(self, i: int, j: int, in_channels: int) -> BlockPlan:
        stage = self.stages[i]
        stage_stride = stage.stride if stage.stride is not None else (1 if i == 0 else 2)
        return BlockPlan(
            kind=stage.block or self.block,
            in_channels=in_channels,
            channels=stage.channels,
            inner=stage.inner or stage.channels,
            kernel=stage.kernel,
            stride=stage_stride if j == 0 else 1,
            downsample=stage.downsample or self.downsample,
            shortcut=stage.shortcut or self.shortcut,
        )

    @property
    def preact(self) -> bool:
        """Whether the stem is a convolution alone: the first block brings its own norm and activation."""
        return (self.stages[0].block or self.block).startswith("preact")

    @property
    def final_norm(self) -> bool:
        """Whether a norm and an activation follow the last stage, whose preact blocks end on an addition."""
        return (self.stages[-1].block or self.block).startswith("preact")

    def sizes(self) -> tuple[int, list[int]]:
        """Side in pixels of the map after the stem, and after each block in order."""
        side = stem = _stem_side(self.input.size, self.stem)
        after = []
        for _, _, block in self.plan():
            side = block.side_after(side)
            after.append(side)
        return stem, after

    @property
    def pooled_side(self) -> int:
        """Side of the map that the classifier reads."""
        side = self.sizes()[1][-1]
        return 1 if self.pool.size == "global" else side // self.pool.size

    def _check_stem(self) -> None:
        if self.stem.kind == "whiten":
            needed = 2 * self.input.channels * self.stem.kernel**2
            if self.stem.channels != needed:
                raise BadField(
                    f"{self.stem.channels} channels",
                    "stem.channels",
                    f"a whitening stem of kernel {self.stem.kernel} on {self.input.channels} channels has {needed}",
                )

    def _check_shortcuts(self) -> None:
        for i, _, block in self.plan():
            if block.shortcut.kind == "pad" and block.in_channels > block.out_channels:
                raise BadField(
                    f"a pad shortcut cannot go from {block.in_channels} to {block.out_channels} channels",
                    f"stages[{i}].shortcut",
                    "widen the stage or use kind conv",
                )

    def _check_sizes(self) -> None:
        stem, after = self.sizes()
        if stem < 1:
            raise BadField(f"kernel {self.stem.kernel} is larger than the image", "stem.kernel", "make it smaller")
        if 0 in after:
            stage = [i for i, _, _ in self.plan()][after.index(0)]
            raise BadField("nothing is left of the image", f"stages[{stage}].stride", "use fewer strided stages")
        if self.pool.size != "global" and self.pool.size > after[-1]:
            raise BadField(
                f"a window of {self.pool.size} pixels on a {after[-1]}x{after[-1]} map",
                "pool.size",
                f"give at most {after[-1]}, or global",
            )


def _stem_side(side: int, stem: StemSpec) -> int:
    return (side - stem.kernel) // stem.stride + 1 if stem.kind == "whiten" else -(-side // stem.stride)
