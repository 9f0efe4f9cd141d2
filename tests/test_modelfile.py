"""model.safetensors holds everything: a new process gets the same network from it alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import resfit
from resfit.errors import BadInput
from resfit.modelfile import load, save_model
from resfit.modelheader import DIGEST, ModelInfo
from resfit.net import Network, build
from resfit.spec import NetSpec
from resfit.target import find_target

INFO = ModelInfo(classes=("cat", "dög", "3"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1), temperature=0.7)
SPEC = NetSpec.from_dict(
    {
        "input": {"size": 8},
        "stem": {"kind": "whiten", "kernel": 2, "channels": 24},
        "stages": [{"blocks": 1, "channels": 8}, {"blocks": 1, "channels": 16, "block": "preact"}],
        "norm": {"gain": False},
        "se": {"reduction": 4},
        "num_classes": 3,
    }
)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)


def trained() -> Network:
    """A network whose running statistics have moved."""
    torch.manual_seed(0)
    net = build(SPEC).train()
    net(torch.randn(8, 3, 8, 8))
    return net.eval()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tmp_path / "model.safetensors", trained(), SPEC, INFO)
    return tmp_path / "model.safetensors"


def complaint(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        load(path)
    line = str(caught.value)
    assert "model.safetensors" in line
    assert len(line.splitlines()) == 1
    return line


def test_a_network_comes_back_with_its_spec_and_what_its_user_has_to_know(model):
    net = load(model)
    assert torch.equal(net(IMAGES), trained()(IMAGES))
    assert (net.spec, net.info, net.training) == (SPEC, INFO, False)
    assert torch.equal(load(model.parent)(IMAGES), net(IMAGES))  # the run folder will do


def test_a_new_process_gets_the_same_logits_from_the_file_alone(model, tmp_path):
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    model.rename(alone / "model.safetensors")
    code = (
        "import json, resfit, torch\n"
        "net = resfit.load('model.safetensors')\n"
        "logits = net(torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8))\n"
        "print(json.dumps([logits.tolist(), net.info.classes]))\n"
    )
    source = str(Path(resfit.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=alone,
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    )
    logits, classes = json.loads(done.stdout)
    torch.testing.assert_close(torch.tensor(logits), trained()(IMAGES))
    assert tuple(classes) == INFO.classes


def test_a_missing_model_is_said_to_be_missing(tmp_path):
    assert complaint(tmp_path / "model.safetensors").startswith("no model")
    assert complaint(tmp_path).startswith("no model")


def test_another_file_is_not_called_a_damaged_model(tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"a picture of a cat")
    assert complaint(tmp_path / "cat.jpg").startswith("not a model.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_model_is_refused(model, share):
    model.write_bytes(model.read_bytes()[: int(share * model.stat().st_size)])
    assert complaint(model).startswith("damaged model")


def test_a_flipped_bit_is_refused_or_harmless_wherever_it_is(model):
    whole, refused = model.read_bytes(), 0
    expected = trained().state_dict()
    length = int.from_bytes(whole[:8], "little")
    for place in [*range(0, 8 + length, length // 40), *range(8 + length, len(whole), len(whole) // 20)]:
        model.write_bytes(whole[:place] + bytes([whole[place] ^ 0x04]) + whole[place + 1 :])
        try:
            net = load(model)
            assert (net.spec, net.info) == (SPEC, INFO), f"byte {place}"
            assert all(torch.equal(value, expected[name]) for name, value in net.state_dict().items())
        except BadInput as error:
            assert len(str(error).splitlines()) == 1
            assert str(model) in str(error)
            refused += 1
        else:
            assert place < 8 + length, f"a flipped weight at {place} was taken"
    assert refused > 50


def test_a_flipped_bit_in_the_spec_is_not_priced(model):
    whole = model.read_bytes()
    place = whole.index(rb"\"channels\": 24") + len(rb"\"channels\": ")
    model.write_bytes(whole[:place] + b"3" + whole[place + 1 :])
    with pytest.raises(BadInput, match=r"damaged model .*its checksum is wrong"):
        find_target(str(model))


def test_a_file_without_a_digest_still_loads_and_other_programs_read_one_with_it(model, tmp_path):
    with safetensors.safe_open(model, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = safetensors.torch.load_file(model)
    assert len(metadata.pop(DIGEST)) == 64
    safetensors.torch.save_file(tensors, tmp_path / "older.safetensors", metadata)
    assert torch.equal(load(tmp_path / "older.safetensors")(IMAGES), load(model)(IMAGES))
    safetensors.torch.save_file(tensors, tmp_path / "forged.safetensors", {**metadata, DIGEST: "0" * 64})
    with pytest.raises(BadInput, match="its checksum is wrong"):
        load(tmp_path / "forged.safetensors")


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        (None, "not a resfit model"),
        ({"format": "pt"}, "not a resfit model"),
        ({"resfit.spec": json.dumps(SPEC.to_dict())}, "fewer weights than its spec has"),
        ({"resfit.spec": "{", "resfit.info": "{}"}, "damaged model"),
        ({"resfit.spec": "[]", "resfit.info": "{}"}, "damaged model"),
        ({"resfit.spec": '{"stages": []}', "resfit.info": "{}"}, "stages"),
    ],
)
def test_a_file_of_another_program_is_refused(tmp_path, metadata, problem):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(2)}, path, metadata)
    with pytest.raises(BadInput, match=problem):
        load(path)
    complaint(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    net = build(SPEC)
    with torch.no_grad():
        net.head.weight[0, 0] = value
    save_model(tmp_path / "model.safetensors", net, SPEC, INFO)
    assert "a weight is not finite" in complaint(tmp_path / "model.safetensors")


def test_weights_of_another_network_are_refused(tmp_path):
    other = NetSpec.from_dict({**SPEC.to_dict(), "num_classes": 4})
    save_model(tmp_path / "model.safetensors", build(other), SPEC, INFO)
    assert complaint(tmp_path / "model.safetensors").startswith("damaged model")


def test_a_spec_that_would_fill_the_memory_is_refused_before_it_is_built(tmp_path):
    path = tmp_path / "model.safetensors"
    spec = {**SPEC.to_dict(), "stages": [{"blocks": 10, "channels": 65_536, "kernel": 15}]}
    safetensors.torch.save_file({"w": torch.zeros(2)}, path, {"resfit.spec": json.dumps(spec), "resfit.info": "{}"})
    assert "fewer weights than its spec has parameters" in complaint(path)


def test_a_model_without_class_names_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    spec = json.dumps(SPEC.to_dict())
    tensors = {name: tensor.contiguous() for name, tensor in trained().state_dict().items()}
    safetensors.torch.save_file(tensors, path, {"resfit.spec": spec, "resfit.info": '{"mean": [], "std": []}'})
    assert "missing field (classes)" in complaint(path)


def test_loading_draws_nothing_from_the_users_random_numbers(model):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load(model)
    assert torch.equal(torch.rand(1), expected)


def test_a_network_of_ones_own_is_saved_with_its_names(model: Path, tmp_path: Path) -> None:
    net, file = load(model), tmp_path / "mine.safetensors"
    net.reset_classifier(2)
    for wanted, classes in (("0 classes for 2", None), ("3 classes for 2", "abc")):
        with pytest.raises(BadInput, match=wanted):
            resfit.save(net, file, classes=classes)
    assert resfit.save(net, file, classes=["cat", "dog"]) == file
    again = load(file)
    assert (again.info.classes, again.info.mean, again.info.temperature) == (("cat", "dog"), net.info.mean, None)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())
    with pytest.raises(BadInput, match="already exists"):
        resfit.save(again, file)
    with pytest.raises(BadInput, match="0 mean for"):
        resfit.save(build(net.spec), tmp_path / "new.safetensors", classes=["cat", "dog"])
    new = tmp_path / "new.safetensors"
    for wrong in (["cat", "cat"], [0, 1]):
        with pytest.raises(BadInput, match=r"not all different texts \(classes\)"):
            resfit.save(again, new, classes=wrong)
    statistics = {"mean": torch.full((len(net.info.mean),), 0.5), "std": np.full(len(net.info.std), 0.25, np.float32)}
    resfit.save(again, tmp_path / "numbers.safetensors", **statistics)
    assert load(tmp_path / "numbers.safetensors").info.mean == (0.5,) * len(net.info.mean)
    with torch.no_grad():
        again.head.weight[0, 0] = float("nan")
    with pytest.raises(BadInput, match="a weight is not finite"):
        resfit.save(again, new)
    again.head = torch.nn.Linear(again.num_features, 3)
    with pytest.raises(BadInput, match="another than its spec"):
        resfit.save(again, new, classes=["a", "b", "c"])
    again.reset_classifier(0)
    with pytest.raises(BadInput, match="no classifier"):
        resfit.save(again, new)
    assert not new.exists()
