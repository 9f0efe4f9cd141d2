"""The layers that torch does not have: norms and gates with kernels, random drops, shortcuts, a whitening stem.

Shapes: N images, C channels, H x W pixels. A kernel's map has an attribute `twin`, the same map for a second reader, so
that the gradients of both are added up in the kernel's own pass. Any operation in between drops it, at a cost in time
alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resfit.distributed import BatchNorm, is_single
from resfit.kernels import takes
from resfit.kernels.gate import GateActivation, Means
from resfit.kernels.norm import GROUP, Activation, NormActivation, normalized
from resfit.spec import ECASpec, NormSpec, SESpec, StemSpec

# What a kernel can compute together with a norm or a gate ahead of it.
_FUSED = {nn.ReLU: "relu", nn.GELU: "gelu", nn.SiLU: "silu", nn.Identity: None}
_COSTLY = (nn.GELU, nn.SiLU)  # where a kernel gains alone as well


class Layers(nn.Sequential):
    """Layers one after the other, and what is to follow the last: an addition, an activation."""

    def forward(self, x: Tensor, added: Tensor | None = None, act: nn.Module | None = None) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if not layers:
                return finish(x, layer, added, act)
            follows = type(layers[0]) in _FUSED
            x = finish(x, layer, act=layers.pop(0) if follows else None)
        return finish(x, added=added, act=act)


def finish(
    x: Tensor, layer: nn.Module | None = None, added: Tensor | None = None, act: nn.Module | None = None
) -> Tensor:
    """act(layer(x) + added), in one pass over the map where a kernel suits; what is not given is left out."""
    alike = added is None or added.shape == x.shape
    if isinstance(layer, (Norm, Gate)) and alike and layer.takes_kernel(x) and (act is None or type(act) in _FUSED):
        return layer.by_kernel(x, added, None if act is None else _FUSED[type(act)])
    x = x if layer is None else layer(x)
    x = x if added is None else x + added
    if type(act) in _COSTLY and takes("norm", x) and x.dtype == torch.bfloat16 and x.numel() % GROUP == 0:
        activated: Tensor = Activation.apply(x, _FUSED[type(act)])
        return activated
    return x if act is None else act(x)


def with_twin(out: Tensor, twin: Tensor) -> Tensor:
    """`out` with the same map for a second reader: what made it adds up the gradients of both in a pass of its own."""
    out.twin = twin  # type: ignore[attr-defined]
    return out


def for_second_reader(x: Tensor) -> Tensor:
    """The twin of a map; x itself where it has none."""
    found: Tensor = getattr(x, "twin", x)
    return found


class TwoWayScale(torch.autograd.Function):
    """Multiply by one weight an image on the way forward and by another on the way back.

    Of x [N, C, H, W] and two weights [N, 1, 1, 1].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        """x times `forward`."""
        ctx.save_for_backward(backward)
        return x * forward

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient times `backward`."""
        (weight,) = ctx.saved_tensors
        return gradient * weight, None, None


def mix_branches(a: Tensor, b: Tensor, *, shake: bool) -> Tensor:
    """The mean of two branches [N, C, H, W], or where they shake a random weighting an image (Gastaldi 2017).

    Weights are uniform from 0 to 1, sum to 1, and are drawn apart for forward and backward: Shake-Shake-Image.
    """
    if not shake:
        return (a + b) / 2
    forward, backward = _per_image(a).uniform_(), _per_image(a).uniform_()
    first: Tensor = TwoWayScale.apply(a, forward, backward)
    second: Tensor = TwoWayScale.apply(b, 1 - forward, 1 - backward)
    return first + second


class DropPath(nn.Module):
    """In training, zero an image's whole residual at `rate` and scale up the others (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> same."""
        if not self.training:
            return x
        return x * _per_image(x).bernoulli_(1 - self.rate).div_(1 - self.rate)


class ShakeDrop(nn.Module):
    """In training, weigh an image's residual at random at `rate`: -1 to 1 forward, 0 to 1 back; else leave it.

    Evaluation takes the mean weight, 1 - rate (Yamada et al. 2019).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> same."""
        if not self.training:
            return x * (1 - self.rate)
        shaken = _per_image(x).bernoulli_(self.rate).bool()
        forward = torch.where(shaken, _per_image(x).uniform_(-1, 1), 1.0)
        backward = torch.where(shaken, _per_image(x).uniform_(), 1.0)
        out: Tensor = TwoWayScale.apply(x, forward, backward)
        return out


def _per_image(x: Tensor) -> Tensor:
    """Room for one weight an image, [N, 1, 1, 1]."""
    return x.new_empty((len(x), 1, 1, 1))


class Norm(nn.BatchNorm2d):
    """Batch normalization over channels; without a gain the scale stays one and is not trained.

    With several processes the statistics are those of the images of all of them.
    """

    def __init__(self, channels: int, norm: NormSpec) -> None:
        super().__init__(channels, eps=norm.eps, momentum=norm.momentum)
        if not norm.gain:
            del self.weight
            self.register_buffer("weight", torch.ones(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> same."""
        if is_single() or not self.training:
            return super().forward(x)
        out: Tensor
        out, mean, variance = BatchNorm.apply(x, self.weight, self.bias, self.eps)
        self._track(mean, variance)
        return out

    def takes_kernel(self, x: Tensor) -> bool:
        """Whether the kernel for bf16 maps on a CPU computes this norm of x, in training or without gradients."""
        suits = takes("norm", x) and x.dtype == torch.bfloat16 and self.bias.dtype == torch.float32 and is_single()
        suits = suits and x.shape[1] == self.num_features and x.shape[1] % 16 == 0
        several = x.numel() > self.num_features  # of one value there is no variance: torch refuses it
        return suits and (several if self.training else not torch.is_grad_enabled())

    def by_kernel(self, x: Tensor, added: Tensor | None, activation: str | None) -> Tensor:
        """activation(norm of x + added), [N, C, H, W] -> same."""
        added = None if added is None else added.to(x.dtype)
        if not self.training:
            mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
            scale = self.weight * (variance + self.eps).rsqrt()
            x = x.contiguous(memory_format=torch.channels_last)
            return normalized(x, scale, self.bias - mean * scale, added, activation)
        out, twin, mean, variance = NormActivation.apply(x, self.weight, self.bias, added, activation, self.eps)
        count = x.numel() // x.shape[1]
        self._track(mean, variance * (count / max(1, count - 1)))
        return with_twin(out, twin)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards a batch's, whose variance is the unbiased one."""
        if self.track_running_stats:
            for running, new in (self.running_mean, mean), (self.running_var, variance):
                running.lerp_(new, self.momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]


class Gate(nn.Module):
    """Scales each channel of each image by a gate that is made of the map's means. [N, C, H, W] -> same."""

    def gates(self, means: Tensor) -> Tensor:
        """From means over pixels, [N, C] -> same."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of each image."""
        return x * self.gates(x.mean((2, 3)))[:, :, None, None]

    def takes_kernel(self, x: Tensor) -> bool:
        """Whether the kernel for bf16 maps on a CPU gates x."""
        return takes("gate", x) and x.dtype == torch.bfloat16 and x.shape[1] % 16 == 0

    def by_kernel(self, x: Tensor, added: Tensor | None, activation: str | None) -> Tensor:
        """activation(gated x + added), [N, C, H, W] -> same."""
        means, x = Means.apply(x.contiguous(memory_format=torch.channels_last))
        added = None if added is None else added.to(x.dtype)
        return with_twin(*GateActivation.apply(x, self.gates(means).float(), added, activation))


class SqueezeExcite(Gate):
    """Gates from all channels' means (Hu et al. 2018)."""

    def __init__(self, channels: int, se: SESpec) -> None:
        super().__init__()
        hidden = max(1, channels // se.reduction)
        self.squeeze = nn.Linear(channels, hidden, bias=se.bias)
        self.excite = nn.Linear(hidden, channels, bias=se.bias)

    def gates(self, means: Tensor) -> Tensor:
        """From means over pixels, [N, C] -> same."""
        return torch.sigmoid(self.excite(F.relu(self.squeeze(means))))


class EfficientChannelAttention(Gate):
    """Gates from the means of neighbouring channels (Wang et al. 2020)."""

    def __init__(self, channels: int, eca: ECASpec) -> None:
        super().__init__()
        kernel = eca.kernel_of(channels)
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def gates(self, means: Tensor) -> Tensor:
        """From means over pixels, [N, C] -> same."""
        return torch.sigmoid(self.conv(means[:, None])[:, 0])


class Blur(nn.Module):
    """Binomial blur, 3 x 3, that keeps every `stride`-th pixel (Zhang 2019): two averages of 2 x 2 pixels.

    At the edge the outermost pixels count again.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H', W'], sides rounded up."""
        return F.avg_pool2d(F.avg_pool2d(x, 2, 1, 1, count_include_pad=False), 2, self.stride)


class PadShortcut(nn.Module):
    """Strided identity, new channels zero (He et al. 2015, option A)."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C + new, H', W']."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class WhiteningConv(nn.Module):
    """A convolution whose filters are set once, by `whiten`, and whose bias is trained."""

    weight: Tensor

    def __init__(self, in_channels: int, stem: StemSpec) -> None:
        super().__init__()
        self.stride = stem.stride
        before, after = ((stem.kernel - 1) // 2, stem.kernel // 2) if stem.pad else (0, 0)
        self.padding = (before, after, before, after)
        weight = torch.empty(stem.channels, in_channels, stem.kernel, stem.kernel)
        self.register_buffer("weight", nn.init.kaiming_normal_(weight))
        self.bias = nn.Parameter(torch.zeros(stem.channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        return F.conv2d(F.pad(x, self.padding), self.weight, self.bias, stride=self.stride)

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
