"""Weight averaging during training (EMA, SWA); the averaged weights are evaluated instead of the last ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from resfit.distributed import sum_int
from resfit.recipe import AverageConfig


class WeightAverage(AveragedModel):
    """The average of a network's weights, in `module`; call `step_ended` after each optimizer step.

    ema averages the running statistics of batch norms like the weights. swa does not: they have to be estimated for the
    averaged weights (Izmailov et al. 2018) when `needs_statistics` is true.
    """

    def __init__(self, net: nn.Module, config: AverageConfig) -> None:
        super().__init__(net)
        self.config, self._estimated_at = config, 0

    @property
    def begun(self) -> bool:
        """Whether the average contains any weights yet."""
        return bool(self.n_averaged)

    @property
    def needs_statistics(self) -> bool:
        """Whether the swa average changed since its batch norm statistics were estimated."""
        return self.config.name == "swa" and self._estimated_at != int(self.n_averaged)

    def step_ended(self, net: nn.Module, progress: float, *, epoch_ended: bool) -> None:
        """Update the average if the recipe asks for it now; `progress` is the finished fraction of all training."""
        complete = self.config.every == "step" or epoch_ended
        if self.config.name == "ema" or (complete and progress >= self.config.start):
            self.update_parameters(net)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add a network's weights and buffers to the average.

        Same result as torch's method, but with few fused operations and without a GPU synchronization.
        """
        ema, taken = self.config.name == "ema", int(self.n_averaged)
        weights = list(zip(self.module.parameters(), model.parameters(), strict=True))
        buffers = list(zip(self.module.buffers(), model.buffers(), strict=True))
        averaged = [pair for pair in weights + (buffers if ema else []) if taken and pair[0].is_floating_point()]
        done = {id(mine) for mine, _ in averaged}
        copied = [pair for pair in weights + buffers if id(pair[0]) not in done]
        if averaged:
            share = 1 - self.config.decay if ema else 1 / (taken + 1)
            torch._foreach_lerp_([mine for mine, _ in averaged], [new for _, new in averaged], share)
        if copied:
            torch._foreach_copy_([mine for mine, _ in copied], [new for _, new in copied])
        self.n_averaged += 1

    def estimate_statistics(self, batches: Iterable[Tensor]) -> None:
        """Estimate the batch norm statistics over `batches` of network inputs."""
        estimate_statistics(self.module, batches)
        self._estimated_at = int(self.n_averaged)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a saved average; its batch norm statistics have to be estimated again."""
        self._estimated_at = 0
        return super().load_state_dict(state_dict, strict, assign)


@torch.no_grad()
def estimate_statistics(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of all batch norms to their means over batches [N, C, H, W], weighted by N.

    All other layers are in evaluation mode: nothing is dropped and no random numbers are drawn. In a distributed run
    each process passes its shard of the batches.
    """
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta, training, seen = [norm.momentum for norm in norms], net.training, 0
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    for inputs in batches if norms else ():
        count = sum_int(len(inputs))
        seen += count
        for norm in norms:
            norm.momentum = count / seen
        net(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.train(training)
