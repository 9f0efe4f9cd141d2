"""The HTML page of `resfit design`: networks that fit a parameter budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resfit.files import write_atomic
from resfit.report.figures import Plane, plane
from resfit.report.page import environment


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network as shown on the page; sizes are for one image. Latency and speed are None if not measured."""

    family: str
    name: str
    depth: int
    departure: float
    params: int
    macs: int
    activation_bytes: int
    latency_ms: float | None = None
    images_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class FamilyNote:
    """What the page says about a family; `known` is its best public result near this size."""

    name: str
    about: str
    known: str = ""


def render_design(networks: Sequence[Network], families: Sequence[FamilyNote], *, budget: int, rule: str) -> str:
    """Return the page about `networks`, in order of rank, as HTML; `rule` explains the ranking."""
    tones = {family.name: tone for tone, family in enumerate(families)}
    return str(
        environment()
        .get_template("design.html.j2")
        .render(
            title=f"Networks for a budget of {budget:,} parameters",
            networks=networks,
            families=families,
            tones=tones,
            budget=budget,
            rule=rule,
            charts=_charts(networks, tones),
            measured=any(network.latency_ms is not None for network in networks),
        )
    )


def write_design(
    networks: Sequence[Network], families: Sequence[FamilyNote], path: Path, *, budget: int, rule: str
) -> Path:
    """Write the page to `path`, atomically, and return the path."""
    return write_atomic(path, render_design(networks, families, budget=budget, rule=rule))


def _charts(networks: Sequence[Network], tones: dict[str, int]) -> list[Plane]:
    def chart(title: str, x_label: str, points: list[tuple[float, float]]) -> Plane:
        named = [(f"{n.family} {n.name}", tones[n.family]) for n in networks]
        return plane(title, x_label, ((*name, *point) for name, point in zip(named, points, strict=True)))

    charts = [
        chart(
            "Million MACs against memory",
            "activations per image, MB in fp32",
            [(n.activation_bytes / 1e6, n.macs / 1e6) for n in networks],
        ),
        chart("Million MACs against depth", "weight layers", [(float(n.depth), n.macs / 1e6) for n in networks]),
    ]
    timed = [n.latency_ms for n in networks if n.latency_ms is not None]
    if len(timed) == len(networks):
        points = [(n.macs / 1e6, latency) for n, latency in zip(networks, timed, strict=True)]
        charts.append(chart("Latency per image, ms, against MACs", "million MACs", points))
    return charts
