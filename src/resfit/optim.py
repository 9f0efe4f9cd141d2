"""Parameter groups, optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resfit.recipe import OptimConfig, ScheduleConfig

Group = dict[str, Any]


def parameter_groups(net: nn.Module, config: OptimConfig) -> list[Group]:
    """Split the trainable parameters into filters, head, and norms and biases, with a learning rate and decay for each.

    Every trainable parameter is in exactly one group. Empty groups are omitted.
    """
    members: dict[str, list[nn.Parameter]] = {"filters": [], "head": [], "norm_and_bias": []}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            members[_group_name(name, parameter)].append(parameter)
    groups = [_group(name, params, config) for name, params in members.items() if params]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    return groups


def _group_name(name: str, parameter: Tensor) -> str:
    if parameter.ndim <= 1:
        return "norm_and_bias"
    return "head" if name == "head.weight" else "filters"


def _group(name: str, params: list[nn.Parameter], config: OptimConfig) -> Group:
    lr = {"head": config.head_lr, "norm_and_bias": config.bias_lr}.get(name) or config.lr
    spared = name == "norm_and_bias" and not config.decay_norm_and_bias
    decay = 0.0 if spared else config.weight_decay * config.lr / lr
    return {"name": name, "params": params, "lr": lr, "weight_decay": decay}


def make_optimizers(net: nn.Module, config: OptimConfig, precision: str = "fp32") -> Optimizers:
    """Create the optimizers of `net`: a single one, or Muon for the filters and SGD for the rest.

    Muon computes its updates in bf16 if `precision` is bf16 or the network is on a GPU.
    """
    groups, on_gpu = parameter_groups(net, config), next(net.parameters()).is_cuda
    fused = None if on_gpu else True  # a single pass over the weights is up to twice as fast on a CPU
    if config.name == "muon":
        filters = [p for group in groups for p in group["params"] if p.ndim == 4]
        rest = [{**g, "params": [p for p in g["params"] if p.ndim != 4]} for g in groups]
        rest = [group for group in rest if group["params"]]
        dtype = torch.bfloat16 if precision == "bf16" or on_gpu else torch.float32
        muon = Muon(filters, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, dtype=dtype)
        momentum = config.sgd_momentum
        return Optimizers([muon, torch.optim.SGD(rest, momentum=momentum, nesterov=momentum > 0, fused=fused)])
    lr, betas, eps = config.lr, config.betas, config.eps or 1e-8
    if config.name == "sgd":
        return Optimizers([torch.optim.SGD(groups, lr, config.momentum, nesterov=config.nesterov, fused=fused)])
    if config.name == "adam":
        return Optimizers([torch.optim.Adam(groups, lr, betas, eps, fused=fused)])
    if config.name == "adamw":
        return Optimizers([torch.optim.AdamW(groups, lr, betas, eps, fused=fused)])
    return Optimizers([torch.optim.Adadelta(groups, lr, rho=config.rho, eps=config.eps or 1e-6)])


class Optimizers(list[torch.optim.Optimizer]):
    """The optimizers of one network, stepped together.

    A GradScaler treats them as a single optimizer: if an fp16 gradient overflows, it skips the step of all of them.
    """

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers."""
        return [group for optimizer in self for group in optimizer.param_groups]

    def step(self) -> None:
        """Step every optimizer."""
        for optimizer in self:
            optimizer.step()

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for optimizer in self:
            optimizer.zero_grad(set_to_none=True)

    def set_rates(self, factor: float) -> None:
        """Set the learning rate of every group to `factor` times its peak, the rate it was created with."""
        for group in self.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])

    def state_dict(self) -> list[dict[int, Any]]:
        """Return each optimizer's per-parameter state, such as momentum. Learning rates etc. come from the recipe."""
        return [optimizer.state_dict()["state"] for optimizer in self]

    def load_state_dict(self, states: list[dict[int, Any]]) -> None:
        """Restore the result of `state_dict`; learning rates and other settings are unchanged."""
        for optimizer, state in zip(self, states, strict=True):
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class Muon(torch.optim.Optimizer):
    """Momentum SGD whose update of each convolution weight is orthogonalized (Muon, Jordan et al. 2024).

    As in airbench, each weight is first rescaled to a norm of sqrt(out channels). Updates are computed in `dtype`.
    torch's own Muon supports only matrices.
    """

    def __init__(
        self,
        params: list[nn.Parameter],
        lr: float,
        momentum: float,
        nesterov: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every convolution weight [out, in, kernel, kernel] that has a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            # This is the memory order of channels_last; the update does not depend on the order of the columns.
            rows = [direction.permute(0, 2, 3, 1) for direction in self._directions(weights, group)]
            updates = orthogonalize([direction.flatten(1).to(self.dtype) for direction in rows])
            scales = torch._foreach_norm(weights)
            torch._foreach_clamp_min_(scales, 1e-7)
            torch._foreach_reciprocal_(scales)
            torch._foreach_mul_(scales, [len(weight) ** 0.5 for weight in weights])
            for weight, scale, direction, update in zip(weights, scales, rows, updates, strict=True):
                update = update.to(weight.dtype).view(direction.shape).permute(0, 3, 1, 2)
                weight.mul_(scale).add_(update, alpha=-group["lr"])

    def _directions(self, weights: list[Tensor], group: Group) -> list[Tensor]:
        gradients, momenta = [], []
        for weight in weights:
            assert weight.grad is not None
            gradients.append(weight.grad)
            state = self.state[weight]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(weight.grad)
            momenta.append(state["momentum"])
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        return list(torch._foreach_add(gradients, momenta, alpha=group["momentum"])) if group["nesterov"] else momenta


def orthogonalize(matrices: Sequence[Tensor], steps: int = 3) -> list[Tensor]:
    """Bring all singular values of each matrix [R, C] close to 1 by a quintic Newton-Schulz iteration.

    The method is from Jordan et al. 2024. It computes in the dtype of the matrices; bf16 is sufficient. After three
    steps, singular values above about 1/80 of the matrix's Frobenius norm are between about 0.5 and 1.2; smaller ones
    were multiplied by up to 41, relative to that norm.
    """
    wide = [matrix.mT if len(matrix) > matrix.shape[1] else matrix for matrix in matrices]
    results = dict[int, Tensor]()
    for side in {len(matrix) for matrix in wide}:  # matrices with the same short side are batched
        places = [n for n, matrix in enumerate(wide) if len(matrix) == side]
        factors = _orthogonalizers(torch.stack([wide[n] @ wide[n].mT for n in places]), steps)
        results |= {n: factor @ wide[n] for n, factor in zip(places, factors, strict=True)}
    return [results[n] if matrix is wide[n] else results[n].mT for n, matrix in enumerate(matrices)]


def _orthogonalizers(grams: Tensor, steps: int) -> Tensor:
    """Return the factors [N, R, R] that orthogonalize N matrices, given their products with their own transposes.

    Every step of the iteration multiplies a matrix by a polynomial in that product. The polynomials commute, so their
    product can be computed without the matrices, whose other side is longer.
    """
    squares = grams.diagonal(dim1=-2, dim2=-1).sum(-1).view(-1, 1, 1) + 1e-14  # squared Frobenius norms
    grams = grams / squares
    factors = _quintic(grams)
    product = factors * squares.rsqrt()
    for _ in range(steps - 1):
        grams = factors @ (factors @ grams)
        factors = _quintic(grams)
        product = factors @ product
    return product


def _quintic(grams: Tensor) -> Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315
    factors = torch.baddbmm(grams, grams, grams, beta=b, alpha=c)
    factors.diagonal(dim1=-2, dim2=-1).add_(a)
    return factors


def lr_factor(config: ScheduleConfig, epoch: float, epochs: int) -> float:
    """Return the learning rate, relative to its peak, after `epoch` (may be fractional) of `epochs` epochs."""
    if epoch < config.warmup:
        done = epoch / config.warmup
        done = (1 - math.cos(math.pi * done)) / 2 if config.name == "onecycle" else done
        return config.start + (1 - config.start) * done
    since, length = epoch - config.warmup, max(epochs - config.warmup, 1e-9)
    if config.name == "step":
        return config.gamma ** int(since / (config.period or length))
    if config.name == "multistep":
        return config.gamma ** sum(epoch >= milestone for milestone in config.milestones)
    if config.name == "triangular":
        return 1 - (1 - config.final) * min(since / length, 1.0)
    if config.name in ("cosine", "onecycle"):
        return _cosine(since / (config.period or length), config.final)
    if config.name == "restarts":
        return _cosine(_cycle_progress(since, config.period or length, config.growth), config.final)
    return 1.0


def _cosine(progress: float, final: float) -> float:
    return final + (1 - final) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def _cycle_progress(since: float, period: float, growth: float) -> float:
    """Return the fraction of the current cosine cycle of warm restarts that is over (Loshchilov & Hutter 2017)."""
    while since >= period:
        since, period = since - period, period * growth
    return since / period


def check_gradients(net: nn.Module) -> None:
    """Assert after the first backward pass that every trainable parameter has a gradient."""
    missing = list(_without_gradient(net))
    assert not missing, f"no gradient reached {', '.join(missing)}"


def _without_gradient(net: nn.Module) -> Iterator[str]:
    return (name for name, p in net.named_parameters() if p.requires_grad and p.grad is None)
