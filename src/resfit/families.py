"""Network families such as wrn or pyramid: make a NetSpec from a family name, blocks per stage and widths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resfit.spec import ECASpec, InputSpec, NetSpec, SESpec, ShortcutSpec, StageSpec, StemSpec, WidenSpec


@dataclass(frozen=True, kw_only=True)
class ImageShape:
    """The task a network is designed for: images of `channels` x `size` x `size` pixels and the number of classes."""

    size: int = 32
    channels: int = 3
    classes: int = 10

    def __post_init__(self) -> None:
        InputSpec(channels=self.channels, size=self.size)  # validates both

    @property
    def stem_stride(self) -> int:
        """The stem's stride: 1 up to 64 pixels a side, 2 up to 128, otherwise 4."""
        return 1 if self.size <= 64 else 2 if self.size <= 128 else 4

    @property
    def stages(self) -> int:
        """The number of stages, at least 2, so that the last feature map has about 8 pixels a side: 3 for 32 pixels."""
        return max(2, round(math.log2(self.size / self.stem_stride / 8)) + 1)


@dataclass(frozen=True, kw_only=True)
class Known:
    """The best published CIFAR-10 test accuracy, in percent, of a network of the family with at most 5M parameters."""

    accuracy: float
    network: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """Networks that differ only in blocks and widths.

    `blocks` is the number of blocks per stage in the published network, and `depths` are the numbers to try. Widths are
    multiples of `step` and double from stage to stage. `stem` is the stem's width, None for that of the first stage. A
    `widening` family has a single width: the channels that all blocks together add to the stem's.
    """

    name: str
    about: str
    blocks: int
    depths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8)
    step: int = 8
    stem: int | None = None
    widening: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)
    known: Known | None = None

    @property
    def steps(self) -> list[int]:
        """Multiples to try for widths, fastest to compute first; [1] if widening, as the spec rounds those widths."""
        if self.widening:
            return [1]
        groups = self.fields.get("groups", 1)
        return [self.step, *(step for step in (8, 4, 2) if step < self.step and step % groups == 0)]

    def spec(self, images: ImageShape, blocks: tuple[int, ...], widths: tuple[int, ...]) -> NetSpec:
        """Return the network with these numbers of blocks and widths, one per stage (a single width if widening)."""
        fields = dict(self.fields)
        stem = self.stem or widths[0]
        if self.widening:
            fields["widen"] = WidenSpec(channels=widths[0], multiple=self.step)
            widths = (stem,) * len(blocks)
        return NetSpec(
            input=InputSpec(channels=images.channels, size=images.size),
            stem=StemSpec(channels=stem, stride=images.stem_stride),
            stages=tuple(StageSpec(blocks=n, channels=width) for n, width in zip(blocks, widths, strict=True)),
            num_classes=images.classes,
            **fields,
        )


_DEEP = (2, 3, 4, 6, 9, 12, 18, 27)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="shake",
            about="two shaken branches: Shake-Shake (Gastaldi 2017)",
            blocks=4,
            stem=16,
            fields={"block": "act-first", "branches": 2, "shortcut": ShortcutSpec(kind="shift")},
            known=Known(accuracy=97.5, network="Shake-Shake 26 2x32d, 2.92M, AutoAugment, 1800 epochs"),
        ),
        Family(
            name="preact",
            about="norm and activation first, stem as wide as the first stage (He et al. 2016b)",
            blocks=3,
            fields={"block": "preact"},
            known=Known(accuracy=96.89, network="preact ResNet-20, four times as wide, 4.33M, RICAP, 400 epochs"),
        ),
        Family(
            name="wrn",
            about="preact blocks after a narrow stem: wide ResNet (Zagoruyko & Komodakis 2016)",
            blocks=4,
            stem=16,
            fields={"block": "preact"},
            known=Known(accuracy=96.4, network="WRN-40-2, 2.24M, Fast AutoAugment, 200 epochs"),
        ),
        Family(
            name="se-resnet",
            about="basic blocks with squeeze-and-excitation (Hu et al. 2018)",
            blocks=4,
            fields={"se": SESpec()},
            known=Known(accuracy=96.04, network="three-stage SE-ResNet, 4.70M, Lookahead"),
        ),
        Family(
            name="preact-bottleneck",
            about="preact bottlenecks, expanded by 4 (He et al. 2016b)",
            blocks=18,
            depths=_DEEP,
            stem=16,
            fields={"block": "preact-bottleneck"},
            known=Known(accuracy=95.83, network="preact ResNet-164, 1.70M, SWA, 225 epochs"),
        ),
        Family(
            name="pyramid",
            about="widths that grow block by block, average-pooled shortcuts: PyramidNet (Han et al. 2017)",
            blocks=18,
            depths=_DEEP,
            stem=16,
            widening=True,
            fields={"block": "pyramid", "shortcut": ShortcutSpec(kind="avg-pad")},
            known=Known(accuracy=95.74, network="PyramidNet-110, alpha 84, 3.86M, flips and crops, 300 epochs"),
        ),
        Family(
            name="resnet",
            about="basic blocks, parameter-free shortcuts (He et al. 2015)",
            blocks=4,
            fields={"shortcut": ShortcutSpec(kind="pad")},
            known=Known(accuracy=93.57, network="ResNet-110, 1.73M, flips and crops, 164 epochs"),
        ),
        Family(
            name="bottleneck",
            about="bottlenecks, expanded by 4 (He et al. 2015)",
            blocks=3,
            depths=(2, 3, 4, 6, 9, 12, 18),
            fields={"block": "bottleneck"},
        ),
        Family(
            name="eca-resnet",
            about="basic blocks with efficient channel attention (Wang et al. 2020)",
            blocks=4,
            fields={"eca": ECASpec()},
        ),
        Family(
            name="resnext",
            about="bottlenecks whose inner convolution has 8 groups, expanded by 2 (Xie et al. 2017)",
            blocks=3,
            depths=(2, 3, 4, 5, 6, 8, 9, 12),
            step=16,
            fields={"block": "bottleneck", "groups": 8, "expansion": 2},
        ),
    )
}
