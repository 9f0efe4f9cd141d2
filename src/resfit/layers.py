"""Network layers: fused batch norm and channel attention, stochastic depth, Shake, shortcuts, a whitening stem.

Shapes: N images, C channels, H x W pixels. A feature map computed by a kernel has an attribute `twin`: the same values
for a second consumer (the shortcut), so that the kernel's backward pass sums the gradients of both. An operation in
between drops the attribute; the result is the same, only slower. Hooks on such a map see the gradient of one consumer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resfit.distributed import BatchNorm, is_single
from resfit.kernels import takes
from resfit.kernels.gate import GateActivation, Means
from resfit.kernels.library import channels_last
from resfit.kernels.norm import GROUP, Activation, NormActivation, normalized
from resfit.spec import ECASpec, NormSpec, SESpec, StemSpec

# Activations that a kernel can fuse with a preceding norm or gate.
_FUSED = {nn.ReLU: "relu", nn.GELU: "gelu", nn.SiLU: "silu", nn.Identity: None}
_COSTLY = (nn.GELU, nn.SiLU)  # a kernel is faster for these even without a norm or gate


class Layers(nn.Sequential):
    """A sequence of layers, optionally followed by an addition and an activation, fused where possible."""

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
    """Return act(layer(x) + added), fused into one pass if a kernel supports it; None arguments are skipped."""
    alike = added is None or (added.shape == x.shape and added.device == x.device)
    known = act is None or (type(act) in _FUSED and getattr(act, "approximate", "none") == "none")
    if isinstance(layer, (Norm, Gate)) and alike and known and layer.takes_kernel(x):
        return layer.by_kernel(x, added, None if act is None else _FUSED[type(act)])
    x = x if layer is None else layer(x)
    x = x if added is None else x + added
    if type(act) in _COSTLY and known and takes("norm", x) and x.numel() % GROUP == 0:
        activated: Tensor = Activation.apply(x, _FUSED[type(act)])
        return activated
    return x if act is None else act(x)


def with_twin(out: Tensor, twin: Tensor) -> Tensor:
    """Attach `twin`, the same feature map for a second consumer, to `out`; its kernel sums both gradients."""
    if not out.is_inference():  # has no version, and no gradients
        out.twin = twin, out._version  # type: ignore[attr-defined]
    return out


def for_second_reader(x: Tensor) -> Tensor:
    """Return the twin of a feature map, or x itself if it has none, or was changed since."""
    twin: Tensor
    twin, version = getattr(x, "twin", (x, None))
    return twin if version is not None and version == x._version else x


class TwoWayScale(torch.autograd.Function):
    """Scale each image by one weight in the forward pass and by another in the backward pass.

    Takes x [N, C, H, W] and two weights [N, 1, 1, 1].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        """Return x times `forward`."""
        ctx.save_for_backward(backward)
        return x * forward

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient times `backward`."""
        (weight,) = ctx.saved_tensors
        return gradient * weight, None, None


def mix_branches(a: Tensor, b: Tensor, *, shake: bool) -> Tensor:
    """Return the mean of two branches [N, C, H, W]; with `shake`, a random weighting per image (Gastaldi 2017).

    The first weight is uniform from 0 to 1 and the two sum to 1. Forward and backward passes draw independent weights
    (Shake-Shake-Image).
    """
    if not shake:
        return (a + b) / 2
    forward, backward = _per_image(a).uniform_(), _per_image(a).uniform_()
    first: Tensor = TwoWayScale.apply(a, forward, backward)
    second: Tensor = TwoWayScale.apply(b, 1 - forward, 1 - backward)
    return first + second


class DropPath(nn.Module):
    """Stochastic depth: in training, zero an image's residual with probability `rate` and scale up the others.

    The others are divided by 1 - rate (Huang et al. 2016).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> same."""
        if not self.training:
            return x
        return x * _per_image(x).bernoulli_(1 - self.rate).div_(1 - self.rate)


class ShakeDrop(nn.Module):
    """In training, scale an image's residual by a random weight with probability `rate` (Yamada et al. 2019).

    The weight is uniform from -1 to 1 in the forward pass and from 0 to 1 in the backward pass. Evaluation uses the
    mean weight of the forward pass, 1 - rate.
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
    """Return an uninitialized tensor for one weight per image, [N, 1, 1, 1]."""
    return x.new_empty((len(x), 1, 1, 1))


class Norm(nn.BatchNorm2d):
    """Batch normalization over channels; without `gain`, the scale is fixed at one and not trained.

    In a distributed run, training uses the statistics of the whole batch over all processes.
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
        """Whether the CPU kernel can compute this norm of x; in evaluation mode only without gradients."""
        read = [self.weight, self.bias] if self.training else [self.weight, self.bias, *self._running()]
        suits = takes("norm", x, *read) and is_single() and all(one.shape == x.shape[1:2] for one in read)
        suits = suits and x.shape[1] % 16 == 0
        several = x.numel() > self.num_features  # one value per channel has no variance: torch raises an error
        return suits and (several if self.training else len(read) == 4 and not torch.is_grad_enabled())

    def _running(self) -> list[Tensor]:
        """The running mean and variance, if they are tracked."""
        return [one for one in (self.running_mean, self.running_var) if one is not None]

    def by_kernel(self, x: Tensor, added: Tensor | None, activation: str | None) -> Tensor:
        """Return activation(norm(x) + added), computed by the kernel. [N, C, H, W] -> same."""
        added = None if added is None else added.to(x.dtype)
        if not self.training:
            mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
            scale = self.weight * (variance + self.eps).rsqrt()
            return normalized(channels_last(x), scale, self.bias - mean * scale, added, activation)
        out, twin, mean, variance = NormActivation.apply(x, self.weight, self.bias, added, activation, self.eps)
        count = x.numel() // x.shape[1]
        self._track(mean, variance * (count / max(1, count - 1)))
        return with_twin(out, twin)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics with a batch's mean and unbiased variance."""
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum  # type: ignore[operator]
            for running, new in zip(self._running(), (mean, variance), strict=True):
                running.lerp_(new, momentum)


class Gate(nn.Module):
    """Base class of channel attention: scale each channel of each image by a gate. [N, C, H, W] -> same.

    Subclasses compute the gates from the means over pixels.
    """

    def gates(self, means: Tensor) -> Tensor:
        """Return the gates for means over pixels. [N, C] -> same."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of each image."""
        return x * self.gates(x.mean((2, 3)))[:, :, None, None]

    def takes_kernel(self, x: Tensor) -> bool:
        """Whether the CPU kernel can gate x."""
        return takes("gate", x) and x.shape[1] % 16 == 0

    def by_kernel(self, x: Tensor, added: Tensor | None, activation: str | None) -> Tensor:
        """Return activation(gated x + added), computed by the kernel. [N, C, H, W] -> same."""
        means, x = Means.apply(channels_last(x))
        added = None if added is None else added.to(x.dtype)
        return with_twin(*GateActivation.apply(x, self.gates(means).float(), added, activation))


class SqueezeExcite(Gate):
    """Squeeze-and-excitation: gates from the means of all channels (Hu et al. 2018)."""

    def __init__(self, channels: int, se: SESpec) -> None:
        super().__init__()
        hidden = max(1, channels // se.reduction)
        self.squeeze = nn.Linear(channels, hidden, bias=se.bias)
        self.excite = nn.Linear(hidden, channels, bias=se.bias)

    def gates(self, means: Tensor) -> Tensor:
        """Return the gates for means over pixels. [N, C] -> same."""
        return torch.sigmoid(self.excite(F.relu(self.squeeze(means))))


class EfficientChannelAttention(Gate):
    """ECA: gates from the means of neighbouring channels (Wang et al. 2020)."""

    def __init__(self, channels: int, eca: ECASpec) -> None:
        super().__init__()
        kernel = eca.kernel_of(channels)
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def gates(self, means: Tensor) -> Tensor:
        """Return the gates for means over pixels. [N, C] -> same."""
        return torch.sigmoid(self.conv(means[:, None])[:, 0])


class Blur(nn.Module):
    """Downsample with a 3 x 3 binomial blur and `stride` (Zhang 2019), computed as two 2 x 2 average pools.

    The border is replicated.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H', W'], sides divided by the stride and rounded up."""
        return F.avg_pool2d(F.avg_pool2d(x, 2, 1, 1, count_include_pad=False), 2, self.stride)


class GlobalMaxPool2d(nn.AdaptiveMaxPool2d):
    """Global max pooling that every supported torch can export to ONNX: torch 2.10 cannot export the adaptive one."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, 1, 1]."""
        return super().forward(x) if self.training else x.amax((2, 3), keepdim=True)


class PadShortcut(nn.Module):
    """Strided identity shortcut with zeros for the new channels (He et al. 2015, option A)."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C + new, H', W']."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class WhiteningConv(nn.Module):
    """A convolution whose filters are set once by `whiten` and then frozen; its bias is trained."""

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
        x, stride = F.pad(x, self.padding), self.stride
        if self.weight.shape[-1] == 1:  # as in Conv2d: torch's CPU library writes past its memory otherwise
            x, stride = x[:, :, ::stride, ::stride], 1
        return F.conv2d(x, self.weight, self.bias, stride=stride)

    @torch.no_grad()
    def whiten(self, images: Tensor, eps: float = 5e-4) -> None:
        """Set the filters to ± the whitened principal components of all patches of normalized images [N, C, H, W].

        The method of airbench (Jordan 2024), after Page 2018.
        """
        channels, kernel = self.weight.shape[1], self.weight.shape[2]
        patches = images.float().unfold(2, kernel, 1).unfold(3, kernel, 1)
        flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels * kernel * kernel)
        moments = (flat.T @ flat / len(flat)).cpu()  # a GPU would load a library for so small a matrix
        values, vectors = torch.linalg.eigh(moments)
        filters = (vectors / torch.sqrt(values.clamp(min=0) + eps)).T.reshape(-1, channels, kernel, kernel)
        self.weight.copy_(torch.cat((filters, -filters)))
