"""Find groups of dependent channels, score their importance, and build the network with fewer channels.

A channel set is written by some layers and read by others: the residual stream of a stage, to which all its blocks add,
or the channels between two layers of one block. A channel is removed from all layers of its set at once, so that the
remaining network computes what the original would if the removed channels were read with zero weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from resfit.cost import cost
from resfit.errors import BadInput
from resfit.net import Network, build
from resfit.spec import BlockPlan, NetSpec

EXPANSION = {"basic": 1, "bottleneck": 4, "preact": 1, "preact-bottleneck": 4}  # by prunable kind of block


@dataclass(frozen=True, kw_only=True)
class Link:
    """A module with weights, and the channel sets that it reads and writes; None for images and classes."""

    module: str
    reads: str | None = None
    writes: str | None = None


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """The channel sets of a network.

    `streams` are the sets after the stem and after each stage; neighbours joined by an identity shortcut are the same
    set. `inner` has the sets within each stage's blocks. `padded` maps a set to the one whose channels it starts with,
    through a pad shortcut.
    """

    links: tuple[Link, ...]
    streams: tuple[str, ...]
    inner: tuple[tuple[str, ...], ...]
    padded: Mapping[str, str]


def wiring(spec: NetSpec) -> Wiring:
    """Return the channel sets of `spec`; raises BadInput for networks that pruning does not support."""
    _check_known(spec)
    streams, padded, inner = ["stem"], {}, [list[str]() for _ in spec.stages]
    links = [Link(module="stem.conv", writes="stem"), Link(module="stem.norm", writes="stem")]
    for i, j, block in spec.plan():
        source = streams[-1]
        if j == 0:
            anew = bool(block.projections) or block.late
            joined = not anew and block.in_channels == block.out_channels
            streams.append(source if joined else f"stages.{i}")
            if not anew and not joined:
                padded[streams[-1]] = source
        name = f"stages.{i}.{j}"
        within = [] if block.late else [f"{name}.inner{n}" for n in range(1, len(block.convs))]
        inner[i] += within
        within = within or [streams[-1]]
        links += _block_links(spec, block, name, [source, *within, streams[-1]])
    links += [Link(module="norm", writes=streams[-1]), Link(module="head", reads=streams[-1])]
    there = {layer.name for layer in cost(spec).layers}
    return Wiring(
        links=tuple(link for link in links if link.module in there),
        streams=tuple(streams),
        inner=tuple(map(tuple, inner)),
        padded=padded,
    )


def _check_known(spec: NetSpec) -> None:
    kinds = {stage.block or spec.block for stage in spec.stages}
    if unknown := sorted(kinds - EXPANSION.keys()):
        raise BadInput(f"blocks of kind {unknown[0]} cannot be pruned (prune): use a network of {', '.join(EXPANSION)}")
    shortcuts = {(stage.shortcut or spec.shortcut).kind for stage in spec.stages}
    given = {
        "expansion": spec.expansion,
        "groups": spec.groups > 1,
        "branches": spec.branches > 1,
        "widen": spec.widen,
        "eca": spec.eca,
        "shortcut": "shift" in shortcuts,
    }
    if names := [name for name, value in given.items() if value]:
        raise BadInput(f"spec.{names[0]} is not supported by pruning (prune): use a network without it")


def _block_links(spec: NetSpec, block: BlockPlan, name: str, sets: list[str]) -> Iterator[Link]:
    """Yield the links of one block, whose convolutions read and write `sets` in turn; some modules may not exist."""
    source, target = sets[0], sets[-1]
    if block.layout.norm_first:
        yield Link(module=f"{name}.norm1", writes=source)
    for n, (reads, writes) in enumerate(pairwise(sets), 1):
        place = f"{name}.entry" if block.late and n == 1 else f"{name}.branch"
        yield Link(module=f"{place}.conv{n}", reads=reads, writes=writes)
        yield Link(module=f"{place}.norm{n + block.layout.norm_first}", writes=writes)
    yield Link(module=f"{name}.branch.se.squeeze", reads=target, writes=f"{name}.se")
    yield Link(module=f"{name}.branch.se.excite", reads=f"{name}.se", writes=target)
    yield Link(module=f"{name}.shortcut.conv", reads=source, writes=target)
    yield Link(module=f"{name}.shortcut.norm", writes=target)


def importance(net: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return the importance of each channel of each set, float32 [C]: the squared first-order loss change without it.

    The Taylor criterion of Molchanov et al. 2019, with the weights that read a channel as its parameters, averaged over
    `batches` of normalized images [N, C, H, W] and labels [N].
    """
    wired = wiring(net.spec)
    readers = [(link.reads, _weight(net, link)) for link in wired.links if link.reads]
    widths = _widths(net, wired)
    worth = {name: torch.zeros(width) for name, width in widths.items()}
    for images, labels in batches:
        loss = F.cross_entropy(net(images).float(), labels)
        gradients = torch.autograd.grad(loss, [weight for _, weight in readers])
        change = {name: torch.zeros(width) for name, width in widths.items()}
        for (name, weight), gradient in zip(readers, gradients, strict=True):
            change[name] += _by_input((gradient * weight).detach(), widths[name]).sum((0, 2)).float().cpu()
        for name, value in change.items():
            worth[name] += value.square()
    for target, source in reversed(list(wired.padded.items())):  # a pad shortcut passes them on
        worth[source] += worth[target][: widths[source]]
    return worth


def shrink(net: Network, spec: NetSpec, worth: Mapping[str, Tensor]) -> Network:
    """Build `spec`, a narrower version of `net`'s spec, with the weights of `net`'s most important channels."""
    wired = wiring(net.spec)
    with torch.random.fork_rng(devices=[]):
        small = build(spec)
    widths, new_widths = _widths(net, wired), _widths(small, wired)
    kept: dict[str | None, Tensor] = {}
    for name, width in new_widths.items():
        kept[name] = _worthiest(worth[name], width, first=kept.get(wired.padded.get(name)))
    state = net.state_dict()
    for link in wired.links:
        for name, target in small.get_submodule(link.module).state_dict(prefix=f"{link.module}.").items():
            value = state[name]
            if link.writes and value.ndim:
                value = value[kept[link.writes].to(value.device)]
            if link.reads and value.ndim > 1:
                value = _by_input(value, widths[link.reads])[:, kept[link.reads].to(value.device)]
            state[name] = value.reshape(target.shape)
    small.load_state_dict(state)
    small.info = net.info
    return small.train(net.training)


def _by_input(weight: Tensor, channels: int) -> Tensor:
    """Reshape a weight of a convolution, or of a linear layer on a feature map, to [outputs, inputs, rest]."""
    return weight.reshape(len(weight), channels, -1)


def _weight(net: Network, link: Link) -> Tensor:
    weight = net.get_submodule(link.module).weight
    assert isinstance(weight, Tensor)
    return weight


def _widths(net: Network, wired: Wiring) -> dict[str, int]:
    """Return the number of channels of each set, in network order."""
    return {link.writes: len(_weight(net, link)) for link in wired.links if link.writes}


def _worthiest(worth: Tensor, width: int, *, first: Tensor | None) -> Tensor:
    """Return the indices of the `width` most important channels, ascending, after those that must come `first`."""
    given = torch.empty(0, dtype=torch.int64) if first is None else first
    rest = worth.clone()
    rest[given] = -1.0
    chosen = rest.argsort(descending=True, stable=True)[: width - len(given)]
    return torch.cat((given, chosen.sort().values))
