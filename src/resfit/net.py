"""NetSpec -> nn.Module: `build` follows the spec by reading it.

Shapes: N images, C channels, H x W pixels, K classes. Module names are the layer names of `resfit.cost`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resfit.distributed import BatchNorm, alone
from resfit.errors import BadInput
from resfit.kernels import takes
from resfit.kernels.conv import Conv2d
from resfit.kernels.gate import GateActivation, Means
from resfit.kernels.norm import GROUP, Activation, NormActivation, normalized
from resfit.kernels.pool import MaxPool2d
from resfit.recipe import InitConfig
from resfit.spec import BlockPlan, ConvPlan, ECASpec, NetSpec, NormSpec, SESpec, StemSpec

ACTIVATIONS: dict[str, Callable[[bool], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": lambda _inplace: nn.GELU(),
    "silu": nn.SiLU,
}
# What a kernel can compute together with a norm or a gate ahead of it.
_FUSED = {nn.ReLU: "relu", nn.GELU: "gelu", nn.SiLU: "silu", nn.Identity: None}
_COSTLY = (nn.GELU, nn.SiLU)  # where a kernel gains alone as well


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
            stages[i].append(Block(block, spec))
            channels = block.out_channels
        self.stages = nn.Sequential(*stages)
        last = spec.last_layout
        self.norm = Norm(channels, spec.norm) if last.norm_first else nn.Identity()
        self.act = nn.Identity() if last.act_last else _activation(spec)
        self.pool = _pool(spec)
        self.dropout = nn.Dropout(spec.dropout.head)
        self.num_features = channels * spec.pooled_side**2  # that the classifier reads
        self.head: nn.Module = nn.Linear(self.num_features, spec.num_classes, bias=spec.head.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map, float [N, C, H, W]."""
        return finish(self.stages(self.stem(images)), self.norm, act=self.act)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [N, K] of the last map, or what the classifier reads, [N, F], where `pre_logits` asks for it."""
        pooled: Tensor = self.dropout(self.pool(features).flatten(1))
        if pre_logits or isinstance(self.head, nn.Identity):
            return pooled
        logits: Tensor = self.head(pooled)
        return logits if self.spec.head.scale == 1.0 else logits * self.spec.head.scale

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh classifier of so many classes in, whose names are unknown; 0: none, logits are then its input."""
        if num_classes == 0:
            self.head = nn.Identity()
        else:
            self.spec = replace(self.spec, num_classes=num_classes)
            self.head = nn.Linear(self.num_features, num_classes, bias=self.spec.head.bias)
            self.head.to(next(self.parameters()))
        if self.info is not None:
            self.info = replace(self.info, classes=(), temperature=None)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of normalized images [N, C, H, W]."""
        return self.forward_head(self.forward_features(images))


class Block(nn.Module):
    """A residual block: one or two branches of convolutions, added to a shortcut, in the order that its kind says.

    A block that begins with an activation and changes shape shares its beginning with its shortcut (He et al. 2016b);
    one with a late shortcut its `entry`: the first convolution with its norm and activation.
    """

    def __init__(self, block: BlockPlan, spec: NetSpec) -> None:
        super().__init__()
        layout = block.layout
        self.norm1 = Norm(block.in_channels, spec.norm) if layout.norm_first else nn.Identity()
        # Without a norm ahead of it, an activation in place would overwrite what the shortcut hands on.
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
        shortcut = self.shortcut(_twin(start if self.shares else x))
        if self.branch2 is None and isinstance(self.drop, nn.Identity):
            return self.branch(start, added=shortcut, act=self.act)  # type: ignore[no-any-return]
        residual = self.branch(start)
        if self.branch2 is not None:
            residual = mix(residual, self.branch2(start), shake=self.training and self.shakes)
        return finish(self.drop(residual), added=shortcut, act=self.act)


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


def _with_twin(out: Tensor, twin: Tensor) -> Tensor:
    """`out` with the same map for a second reader: what made it adds up the gradients of both in a pass of its own."""
    out.twin = twin  # type: ignore[attr-defined]
    return out


def _twin(x: Tensor) -> Tensor:
    """The map for its second reader; x itself where it has no twin."""
    twin: Tensor = getattr(x, "twin", x)
    return twin


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


def mix(a: Tensor, b: Tensor, *, shake: bool) -> Tensor:
    """The mean of two branches [N, C, H, W], or where they shake a random weighting an image (Gastaldi 2017).

    Weights are uniform from 0 to 1, sum to 1, and are drawn apart for forward and backward: Shake-Shake-Image.
    """
    if not shake:
        return (a + b) / 2
    forward, backward = _an_image(a).uniform_(), _an_image(a).uniform_()
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
        return x * _an_image(x).bernoulli_(1 - self.rate).div_(1 - self.rate)


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
        shaken = _an_image(x).bernoulli_(self.rate).bool()
        forward = torch.where(shaken, _an_image(x).uniform_(-1, 1), 1.0)
        backward = torch.where(shaken, _an_image(x).uniform_(), 1.0)
        out: Tensor = TwoWayScale.apply(x, forward, backward)
        return out


def _an_image(x: Tensor) -> Tensor:
    """Room for one weight an image, [N, 1, 1, 1]."""
    return x.new_empty((len(x), 1, 1, 1))


class Norm(nn.BatchNorm2d):
    """Batch normalization over channels; without a gain the scale stays one and is not trained.

    Of a run in several processes it takes the statistics of the whole batch, in one process and in all.
    """

    def __init__(self, channels: int, norm: NormSpec) -> None:
        super().__init__(channels, eps=norm.eps, momentum=norm.momentum)
        if not norm.gain:
            del self.weight
            self.register_buffer("weight", torch.ones(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> same."""
        if alone() or not self.training:
            return super().forward(x)
        out: Tensor
        out, mean, variance = BatchNorm.apply(x, self.weight, self.bias, self.eps)
        self._track(mean, variance)
        return out

    def takes_kernel(self, x: Tensor) -> bool:
        """Whether the kernel for bf16 maps on a CPU computes this norm of x, in training or without gradients."""
        suits = takes("norm", x) and x.dtype == torch.bfloat16 and self.bias.dtype == torch.float32 and alone()
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
        return _with_twin(out, twin)

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
        return _with_twin(*GateActivation.apply(x, self.gates(means).float(), added, activation))


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


class ShiftShortcut(nn.Module):
    """Two convolutions side by side, the second of the map moved by one pixel (Gastaldi 2017)."""

    def __init__(self, block: BlockPlan, spec: NetSpec) -> None:
        super().__init__()
        self.conv1, self.conv2 = (_conv(conv, spec) for conv in block.projections)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        return torch.cat((self.conv1(x), self.conv2(F.pad(x, (-1, 1, -1, 1)))), dim=1)


class PadShortcut(nn.Module):
    """Strided identity, new channels zero (He et al. 2015, option A)."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C + new, H', W']."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class FrozenConv(nn.Module):
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


def initialize(net: Network, init: InitConfig) -> None:
    """Begin the weights of every convolution, and of each residual branch's last layer where asked."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            _initialize_filters(module, init)
    if init.zero_last_norm:
        blocks = [module for module in net.modules() if isinstance(module, Block)]
        if not net.spec.norm.gain and any(block.ends_on_norm for block in blocks):
            raise BadInput("norms without a gain cannot begin at zero (init.zero_last_norm): give spec.norm.gain")
        for block in blocks:
            kind = Norm if block.ends_on_norm else nn.Conv2d
            for branch in block.branches:
                last = [module for module in branch if isinstance(module, kind)][-1]
                nn.init.zeros_(last.weight)


def _initialize_filters(conv: nn.Conv2d, init: InitConfig) -> None:
    if init.filters == "he":
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    else:  # torch's own start, and then as many filters as there are inputs pass one of them on
        conv.reset_parameters()
        nn.init.dirac_(conv.weight.data[: conv.in_channels], conv.groups)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _stem(spec: NetSpec) -> Layers:
    stem, first = spec.stem, spec.first_layout
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stem.kind == "whiten":
        layers["conv"] = FrozenConv(spec.input.channels, stem)
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
        return nn.AdaptiveAvgPool2d(1) if spec.pool.kind == "avg" else nn.AdaptiveMaxPool2d(1)
    return nn.AvgPool2d(spec.pool.size) if spec.pool.kind == "avg" else nn.MaxPool2d(spec.pool.size)
