"""`resfit design`: list the networks that fit a parameter budget."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit.cli.common import RECIPE, print_table
from resfit.errors import BadInput

if TYPE_CHECKING:
    from resfit.recipe import Recipe
    from resfit.solver import Design
    from resfit.spec import NetSpec
    from resfit.speed import Speed

RULE = (
    "Ranking: families by their best published result near this size, networks within a family by departure: how many "
    "doublings the blocks per stage differ from the published network's, and each stage's width from twice the one "
    "before. A recipe's own network comes first, as the training was made for it; its departure is from its own "
    "proportions."
)


def add(commands: Any) -> None:
    """Add the `design` command."""
    parser = commands.add_parser(
        "design",
        help="find networks that fill a parameter budget",
        description="Find networks that fill a parameter budget: they do not exceed it, and use at least 98 % of it.",
    )
    parser.add_argument("--budget", metavar="N", default="5M", help="number of trainable parameters (default: 5M)")
    parser.add_argument("--family", metavar="NAME", help="only this family: shake, preact, wrn, se-resnet, pyramid, …")
    parser.add_argument("--top", type=int, metavar="K", help="networks per family (default: 1; 5 with --family)")
    parser.add_argument("--macs", metavar="N", help="maximum MACs per image, such as 300M (default: no limit)")
    parser.add_argument("--latency", type=float, metavar="MS", help="maximum time per image, measured on this machine")
    parser.add_argument("--measure", action="store_true", help="measure latency and training images/s on this machine")
    parser.add_argument(
        "--size", type=int, metavar="S", help="side of the images in pixels (default: the recipe's, or 32)"
    )
    parser.add_argument(
        "--channels", type=int, metavar="C", help="channels of the images (default: the recipe's, or 3)"
    )
    parser.add_argument("--classes", type=int, metavar="K", help="number of classes (default: the recipe's, or 10)")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="write an HTML page with a Pareto plot")
    parser.add_argument(
        "--save", type=Path, metavar="FILE.yaml", help="write the first network as a recipe; see --recipe"
    )
    parser.add_argument(
        "--recipe",
        metavar="RECIPE",
        help=f"{RECIPE}: list its own network first, with the widths scaled to the budget (unless --family is "
        "given); --save takes the data and training from it (default: 200 epochs of CIFAR-10 without "
        "augmentation)",
    )
    parser.set_defaults(run=_design)


def _design(options: argparse.Namespace) -> int:
    for path in (options.out, options.save):
        if path and path.exists():
            raise BadInput(f"the file already exists ({path}): give another name")
    if options.out and options.save and options.out.resolve() == options.save.resolve():
        raise BadInput(f"--out and --save are the same file ({options.out}): give them different names")
    from resfit.fields import write_yaml
    from resfit.files import write_atomic
    from resfit.recipe import get_recipe

    lender = get_recipe(options.recipe) if options.recipe else None
    found = list(_found(options, lender))
    saved = _as_recipe(options.save, options.recipe, found[0][0]) if options.save else None
    if options.json:
        print(json.dumps([_facts(design, speed) for design, speed in found], indent=1))
    else:
        _print(found)
    if options.out:
        _write_page(options.out, found)
    if saved is not None:
        write_atomic(options.save, write_yaml(saved))
    if not options.json:
        for path in filter(None, (options.out, options.save)):
            print(path)
    return 0


def _found(options: argparse.Namespace, lender: Recipe | None) -> Iterator[tuple[Design, Speed | None]]:
    """Yield the designs, with their measured speed if requested; raises BadInput if none meets the latency limit."""
    from resfit.counts import parse_count
    from resfit.solver import design, fitted_design

    top = options.top if options.top is not None else (5 if options.family else 1)
    for name, value in (("--top", top), ("--latency", 1 if options.latency is None else options.latency)):
        if not 0 < value < float("inf"):
            raise BadInput(f"{value} is not a limit ({name}): give a number above 0")
    budget = parse_count(options.budget)
    macs = parse_count(options.macs, "--macs") if options.macs is not None else None
    images = _images(options, lender.spec if lender else None)
    own = None
    if lender and not options.family:
        own = fitted_design(_for_images(lender.spec, images), budget, macs=macs)
    designs = [own] if own else []
    try:
        designs += design(budget, family=options.family, macs=macs, top=None if options.latency else top, **images)
    except BadInput:
        if not own:
            raise
    if not (options.measure or options.latency):
        yield from ((each, None) for each in designs)
        return
    from resfit.speed import measure

    taken: Counter[str] = Counter()
    for each in designs:
        if taken[each.family] < top:
            speed = measure(each.spec)
            if not options.latency or speed.latency_ms <= options.latency:
                taken[each.family] += 1
                yield each, speed
    if not taken:
        raise BadInput(f"no network is that fast on this machine ({options.latency} ms, --latency): raise the limit")


def _images(options: argparse.Namespace, like: NetSpec | None) -> dict[str, int]:
    """Return size, channels and classes of the images: from the options, else from `like`, else CIFAR-10's."""
    given = {"size": options.size, "channels": options.channels, "classes": options.classes}
    usual = {"size": 32, "channels": 3, "classes": 10}
    if like:
        usual = {"size": like.input.size, "channels": like.input.channels, "classes": like.num_classes}
    return usual | {name: value for name, value in given.items() if value is not None}


def _for_images(spec: NetSpec, images: dict[str, int]) -> NetSpec:
    """Return `spec` adapted to these images; raises BadInput if they are too small for it."""
    from resfit.spec import InputSpec

    channels, stem = images["channels"], spec.stem
    if stem.kind == "whiten":
        stem = replace(stem, channels=stem.whitening_filters(channels))
    wanted = InputSpec(channels=channels, size=images["size"])
    return replace(spec, input=wanted, stem=stem, num_classes=images["classes"])


def _facts(design: Design, speed: Speed | None) -> dict[str, Any]:
    from resfit.fields import to_plain

    facts: dict[str, Any] = {**to_plain(design), **(to_plain(speed) if speed else {})}
    return facts


def _print(found: list[tuple[Design, Speed | None]]) -> None:
    header = ["", "family", "blocks x widths", "layers", "departure", "parameters", "of budget", "MACs", "MB"]
    rows = [
        [
            n,
            each.family,
            shape(each),
            each.depth,
            f"{each.departure:.2f}",
            f"{each.params:,}",
            f"{each.params / each.budget:.1%}",
            f"{each.macs / 1e6:,.0f}M",
            f"{each.activation_bytes / 1e6:.1f}",
            *([f"{speed.latency_ms:.2f}", f"{speed.images_per_second:,.0f}"] if speed else []),
        ]
        for n, (each, speed) in enumerate(found, 1)
    ]
    if found[0][1]:
        header += ["ms per image", "training images/s"]
    print_table(header, rows, right=(0, *range(3, len(header))))
    print(RULE)


def shape(design: Design) -> str:
    """Return the design's blocks and widths as a short text."""
    same = len(set(design.blocks)) == 1
    blocks = str(design.blocks[0]) if same else "-".join(map(str, design.blocks))
    widths = "-".join(map(str, design.widths))
    if design.spec.widen:
        first = design.spec.stages[0].channels
        widths = f"{first} to {first + design.spec.widen.channels}"
    return f"{blocks} x {widths}"


def _write_page(path: Path, found: list[tuple[Design, Speed | None]]) -> None:
    from resfit.families import FAMILIES
    from resfit.report.design import FamilyNote, Network, write_design
    from resfit.solver import OWN

    names = {each.family for each, _ in found}
    notes = [
        FamilyNote(
            name=family.name,
            about=family.about,
            known=f"{family.known.accuracy} % on CIFAR-10: {family.known.network}" if family.known else "",
        )
        for family in FAMILIES.values()
        if family.name in names
    ]
    if OWN in names:
        notes.append(FamilyNote(name=OWN, about="the recipe's own network, all widths scaled by one factor"))
    networks = [
        Network(
            family=each.family,
            name=shape(each),
            depth=each.depth,
            departure=each.departure,
            params=each.params,
            macs=each.macs,
            activation_bytes=each.activation_bytes,
            latency_ms=speed.latency_ms if speed else None,
            images_per_second=speed.images_per_second if speed else None,
        )
        for each, speed in found
    ]
    write_design(networks, notes, path, budget=found[0][0].budget, rule=RULE)


def _as_recipe(path: Path, lender: str | None, design: Design) -> dict[str, Any]:
    """Return a recipe with the designed network; everything else comes from the recipe `lender`, or the defaults.

    Raises BadInput if its data are not for such a network.
    """
    from resfit.recipe import Recipe, plain_recipe
    from resfit.solver import OWN

    kept = plain_recipe(lender) if lender else {}
    kept.pop("deviations", None)  # they refer to a published setting, which this recipe no longer is
    if design.family != OWN and "train" in kept:  # these fields name parts of the other network
        kept["train"] = {k: v for k, v in kept["train"].items() if k not in ("freeze_stem_after", "freeze")}
    found = {
        **kept,
        "name": path.stem,
        "description": f"{design.family} {shape(design)}, designed for {design.budget:,} parameters",
        "budget": design.budget,
        "spec": design.spec.to_dict(),
    }
    try:
        Recipe.from_dict(found)
    except BadInput as error:
        advice = "" if lender else "; for images of your own, add --recipe folder"
        raise BadInput(f"{error}{advice}") from None
    return found
