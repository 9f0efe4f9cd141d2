"""A spec that cannot be built cannot be made: every rule names its field and says what is allowed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from helpers.strategies import specs
from resfit.errors import BadInput
from resfit.spec import ECASpec, NetSpec, ShortcutSpec


def plain(**changes: object) -> dict[str, object]:
    return {"stages": [{"blocks": 1, "channels": 16}, {"blocks": 1, "channels": 32}], **changes}


def one(**stage: object) -> list[dict[str, object]]:
    return [{"blocks": 1, "channels": 16, **stage}]


@pytest.mark.parametrize(
    ("changes", "where", "allowed"),
    [
        ({"num_classes": 1}, "num_classes", "from 2 to"),
        ({"stages": []}, "stages", "1 to 16"),
        ({"stages": one() * 17}, "stages", "1 to 16"),
        ({"stages": one(blocks=0)}, "stages.0.blocks", "from 1 to"),
        ({"stages": one(channels=0)}, "stages.0.channels", "from 1 to"),
        ({"stages": one(stride=0)}, "stages.0.stride", "from 1 to 8"),
        ({"stages": one(kernel=4)}, "stages.0.kernel", "odd number from 1 to 15"),
        ({"stages": one(kernel=17)}, "stages.0.kernel", "odd number from 1 to 15"),
        ({"stages": one(shortcut={"kernel": 2})}, "stages.0.shortcut.kernel", "odd number"),
        ({"stages": one(block="basics")}, "stages.0.block", "basic"),
        ({"stages": one(downsample="avgpool")}, "stages.0.downsample", "maxpool"),
        ({"block": "resnext"}, "block", "bottleneck"),
        ({"groups": 0}, "groups", "from 1 to"),
        ({"groups": 2}, "groups", "bottleneck block"),
        ({"groups": 3, "block": "bottleneck"}, "groups", "divisor of the channels"),
        ({"expansion": 0}, "expansion", "from 1/64 to 64"),
        ({"expansion": "nan"}, "expansion", "from 1/64 to 64"),
        ({"expansion": 0.3}, "expansion", "makes it whole"),
        ({"branches": 3}, "branches", "1, 2"),
        ({"mix": "max"}, "mix", "mean"),
        ({"widen": {"channels": 0}}, "widen.channels", "from 1 to"),
        ({"widen": {"channels": 8, "multiple": 0}}, "widen.multiple", "from 1 to"),
        ({"eca": {"kernel": 2}}, "eca.kernel", "odd number"),
        ({"eca": {}, "se": {}}, "eca", "eca or se"),
        ({"shortcut": {"kind": "shift", "kernel": 3}}, "shortcut.kernel", "give 1"),
        ({"shortcut": {"kernel": -1}}, "shortcut.kernel", "odd number"),
        ({"shortcut": {"kind": "none"}}, "shortcut.kind", "conv"),
        ({"input": {"channels": 0}}, "input.channels", "from 1 to 64"),
        ({"input": {"size": 3}}, "input.size", "from 4 to 1024"),
        ({"stem": {"channels": 0}}, "stem.channels", "from 1 to"),
        ({"stem": {"stride": 5}}, "stem.stride", "from 1 to 4"),
        ({"stem": {"kernel": 2}}, "stem.kernel", "odd number"),
        ({"stem": {"kind": "whiten", "kernel": 2, "channels": 64}}, "stem.channels", "has 24"),
        ({"se": {"reduction": 0}}, "se.reduction", "from 1 to"),
        ({"norm": {"momentum": 0.0}}, "norm.momentum", "above 0, at most 1"),
        ({"norm": {"momentum": "nan"}}, "norm.momentum", "above 0, at most 1"),
        ({"norm": {"eps": 0.0}}, "norm.eps", "between 0 and 1"),
        ({"dropout": {"block": 1.0}}, "dropout.block", "from 0 to below 1"),
        ({"dropout": {"head": -0.1}}, "dropout.head", "from 0 to below 1"),
        ({"dropout": {"path": 1.0}}, "dropout.path", "from 0 to below 1"),
        ({"dropout": {"shakedrop": -0.1}}, "dropout.shakedrop", "from 0 to below 1"),
        ({"dropout": {"path": 0.1, "shakedrop": 0.1}}, "dropout.shakedrop", "one of the two"),
        ({"pool": {"size": 0}}, "pool.size", "from 1 to"),
        ({"pool": {"size": 17}}, "pool.size", "at most 16, or global"),
        ({"head": {"scale": 0.0}}, "head.scale", "above 0"),
        ({"head": {"scale": "inf"}}, "head.scale", "above 0"),
        ({"activation": "relu6"}, "activation", "relu"),
    ],
)
def test_a_bad_value_is_refused_by_name_and_rule(changes, where, allowed):
    with pytest.raises(BadInput) as caught:
        NetSpec.from_dict(plain(**changes))
    assert f"({where})" in str(caught.value)
    assert allowed in str(caught.value).split(f"({where})")[1]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"stages": one(channels=8), "shortcut": {"kind": "pad"}}, "stages.0.shortcut"),  # the stem has 64
        ({"stages": one(channels=8), "shortcut": {"kind": "avg-pad"}}, "stages.0.shortcut"),
        ({"stages": one(channels=1), "shortcut": {"kind": "shift"}}, "stages.0.shortcut"),
        ({"stages": one(channels=8), "shortcut": {"kind": "late"}, "block": "preact"}, "stages.0.shortcut"),
        ({"stages": one(channels=8), "shortcut": {"kind": "late"}, "branches": 2}, "stages.0.shortcut"),
        ({"stages": one(stride=8) * 2, "downsample": "maxpool"}, "stages.1.stride"),
        (
            {"input": {"size": 4}, "stem": {"kind": "whiten", "kernel": 5, "channels": 150}, "stages": one()},
            "stem.kernel",
        ),
    ],
)
def test_parts_that_cannot_go_together_are_refused_where_they_meet(changes, where):
    with pytest.raises(BadInput) as caught:
        NetSpec.from_dict(plain(**changes))
    assert f"({where})" in str(caught.value)


def test_a_pool_of_no_allowed_kind_is_told_both_that_are():
    with pytest.raises(BadInput, match=r"a whole number or global \(pool\.size\)"):
        NetSpec.from_dict(plain(pool={"size": 2.5}))


def test_a_stage_overrides_the_network():
    spec = NetSpec.from_dict(
        plain(
            stages=[
                {"blocks": 1, "channels": 16},
                {
                    "blocks": 1,
                    "channels": 32,
                    "block": "bottleneck",
                    "shortcut": {"kernel": 3},
                    "downsample": "maxpool",
                },
            ],
            block="preact",
            shortcut={"kernel": 5},
        )
    )
    (_, _, first), (_, _, second) = spec.plan()
    assert (first.kind, first.shortcut, first.downsample) == ("preact", ShortcutSpec(kernel=5), "stride")
    assert (second.kind, second.shortcut, second.downsample) == ("bottleneck", ShortcutSpec(kernel=3), "maxpool")
    assert (second.in_channels, second.out_channels) == (16, 128)
    assert spec.first_layout.norm_first
    assert not spec.last_layout.norm_first


def test_the_first_block_of_a_stage_strides_by_two_except_in_the_first_stage():
    stages = [{"blocks": 2, "channels": 8}, {"blocks": 2, "channels": 8}, {"blocks": 1, "channels": 8, "stride": 3}]
    spec = NetSpec.from_dict(plain(stages=stages))
    assert [block.stride for _, _, block in spec.plan()] == [1, 1, 2, 1, 3]


def test_widening_adds_its_channels_evenly_and_ends_on_all_of_them():
    stages = [{"blocks": 2, "channels": 16}, {"blocks": 2, "channels": 16}]

    def widths(**widen: int) -> list[int]:
        return [block.channels for _, _, block in NetSpec.from_dict(plain(stages=stages, widen=widen)).plan()]

    assert widths(channels=10) == [18, 21, 23, 26]
    assert widths(channels=48, multiple=8) == [24, 40, 48, 64]


def test_drop_rates_rise_evenly_to_the_last_block():
    stages = [{"blocks": 3, "channels": 16}, {"blocks": 1, "channels": 16}]
    for kind in ("path", "shakedrop"):
        spec = NetSpec.from_dict(plain(stages=stages, dropout={kind: 0.4}))
        assert [block.drop for _, _, block in spec.plan()] == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(("channels", "kernel"), [(1, 1), (8, 3), (64, 3), (128, 5), (256, 5), (512, 5)])
def test_channel_attention_looks_further_in_wider_layers(channels, kernel):
    assert ECASpec().kernel_of(channels) == kernel
    assert ECASpec(kernel=7).kernel_of(channels) == 7


def test_what_came_later_is_not_written_where_it_is_not_used():
    later = {"expansion", "groups", "branches", "mix", "widen", "eca"}
    spec = NetSpec.from_dict(plain())
    assert not later & set(spec.to_dict())
    assert set(spec.to_dict()["dropout"]) == {"block", "head"}
    assert NetSpec.from_dict(plain(branches=2)).to_dict()["branches"] == 2


def test_odd_sides_round_up_in_convolutions_and_down_in_pools():
    def sides(downsample: str) -> tuple[int, ...]:
        stages = [{"blocks": 1, "channels": 8}, {"blocks": 1, "channels": 8}]
        return NetSpec.from_dict(plain(stages=stages, input={"size": 9}, downsample=downsample)).sizes()[1]

    assert sides("stride") == (9, 5)
    assert sides("maxpool") == (9, 4)
    assert sides("blur") == (9, 5)


def test_equal_specs_are_one_dictionary_key_and_cannot_be_changed():
    a, b = NetSpec.from_dict(plain()), NetSpec.from_dict(plain())
    assert {a: 1}[b] == 1
    with pytest.raises(AttributeError):
        a.num_classes = 3


@settings(max_examples=40, deadline=None)
@given(specs())
def test_every_spec_comes_back_from_its_yaml(tmp_path_factory, spec):
    path = tmp_path_factory.getbasetemp() / "spec.yaml"
    path.write_text(spec.to_yaml(), encoding="utf-8")
    assert NetSpec.from_yaml(path) == spec
    assert NetSpec.from_dict(spec.to_dict()) == spec
