"""Sharpness-aware minimization (SAM, ASAM): use the gradient at the worst weights nearby, not at the weights.

A step takes two forward and two backward passes, so about twice the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from resfit.recipe import SamConfig

_ETA = 0.01  # lets weights that are zero be perturbed too (Kwon et al. 2021)


@contextmanager
def perturbed(net: nn.Module, config: SamConfig) -> Iterator[None]:
    """In the block, `net` has weights w + e that maximize its loss nearby, and no gradients; afterwards w again.

    e is rho g / |g| (SAM: Foret et al. 2021), or adaptive rho T² g / |T g| with T = |w| + 0.01 for each weight (ASAM:
    Kwon et al. 2021), where g is the current gradient of the parameters; the scale of g does not matter. Norms are over
    all parameters that have a gradient. In the block, batch norms use batch statistics and do not update the running
    ones.
    """
    weights = [p for p in net.parameters() if p.grad is not None]
    before = [weight.detach().clone() for weight in weights]
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        _climb(weights, config)
        net.zero_grad(set_to_none=True)
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)


@torch.no_grad()
def _climb(weights: list[nn.Parameter], config: SamConfig) -> None:
    """Add e, a step of size `rho` along the current gradient, to the weights."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    scales = [weight.abs() + _ETA if config.adaptive else weight.new_ones(()) for weight in weights]
    scaled = [gradient * scale for gradient, scale in zip(gradients, scales, strict=True)]
    length = torch.stack([direction.norm() for direction in scaled]).norm()
    for weight, direction, scale in zip(weights, scaled, scales, strict=True):
        weight.addcmul_(direction * scale, config.rho / (length + 1e-12))
