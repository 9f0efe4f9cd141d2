"""Exports agree with their network, or are not kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import resfit
from helpers.strategies import specs
from helpers.tiny_recipe import TINY
from resfit import export as export_module
from resfit.cli import main
from resfit.data import load_dataset
from resfit.data.normalize import normalizer
from resfit.errors import BadInput, RunFailed
from resfit.export import FORMATS, export
from resfit.export.check import BATCH_SIZES, agreement
from resfit.export.deploy import Deployed, fold_norms
from resfit.export.formats import ExportJob, network_answer
from resfit.export.int8 import pack, with_packed_weights
from resfit.layers import Norm
from resfit.modelfile import load
from resfit.modelheader import ModelInfo
from resfit.net import Network, build
from resfit.recipe import Recipe
from resfit.record import read_exports, read_record
from resfit.run import train
from resfit.spec import NetSpec

SMALL: dict[str, Any] = {
    "input": {"size": 12},
    "stem": {"channels": 8},
    "stages": [{"blocks": 1, "channels": 8}, {"blocks": 1, "channels": 16}],
}
WHITEN, PREACT = "whiten, maxpool, gelu, no gain", "preact, se, pad, silu"
OPTIONS: dict[str, dict[str, Any]] = {
    WHITEN: {
        "stem": {"kind": "whiten", "kernel": 2, "channels": 24},
        "downsample": "maxpool",
        "activation": "gelu",
        "norm": {"gain": False},
        "head": {"bias": False, "scale": 0.1},
        "pool": {"kind": "max", "size": "global"},
    },
    PREACT: {
        "block": "preact-bottleneck",
        "se": {"reduction": 4},
        "shortcut": {"kind": "pad"},
        "activation": "silu",
        "dropout": {"block": 0.2, "head": 0.2},
        "pool": {"kind": "avg", "size": 3},
    },
}


def network(spec: NetSpec, seed: int = 0) -> Network:
    """A network with class names, whose norms have seen a batch and whose gains differ in size and sign."""
    torch.manual_seed(seed)
    net = build(spec).train()
    channels = spec.input.channels
    net(torch.randn(8, channels, spec.input.size, spec.input.size))
    for module in net.modules():
        if isinstance(module, Norm) and spec.norm.gain:
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    classes = tuple(map(str, range(spec.num_classes)))
    net.info = ModelInfo(classes=classes, mean=(0.4,) * channels, std=(0.2,) * channels, temperature=0.5)
    return net.eval()


def pictures(spec: NetSpec, count: int = 64) -> Tensor:
    shape = (count, spec.input.channels, spec.input.size, spec.input.size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_agrees(net: Network, folder: Path, name: str, kind: str = "uint8", tolerance: float = 1e-4) -> Path:
    folded, _ = fold_norms(net)
    images = pictures(net.spec)
    expected, file = network_answer(net)(images), folder / f"model{FORMATS[name].suffix}"
    FORMATS[name].write(ExportJob(net=net, folded=folded, kind=kind, train=images), file)
    answer = FORMATS[name].open(file, kind)
    for size in BATCH_SIZES:
        found = agreement(answer(images[:size]), expected[:size], size)
        assert found.largest_difference <= tolerance * max(1.0, expected.abs().max().item()), (name, kind, size)
    return file


@pytest.mark.parametrize(
    ("name", "option", "kind"),
    [
        ("onnx", WHITEN, "float"),
        ("torch", PREACT, "float"),
        ("safetensors-fp32", WHITEN, "uint8"),
        pytest.param("onnx", PREACT, "uint8", marks=pytest.mark.slow),
        pytest.param("torch", WHITEN, "uint8", marks=pytest.mark.slow),
    ],
)
def test_a_file_is_its_network_at_every_batch_size(tmp_path: Path, name: str, option: str, kind: str) -> None:
    assert_agrees(network(NetSpec.from_dict({**SMALL, **OPTIONS[option]})), tmp_path, name, kind)


WIDE: dict[str, Any] = {**SMALL, "stages": [{"blocks": 1, "channels": 64}, {"blocks": 1, "channels": 128}]}


def test_int8_is_close_to_its_network_and_small(tmp_path: Path) -> None:
    net = network(NetSpec.from_dict(WIDE))
    file = assert_agrees(net, tmp_path, "int8", tolerance=0.25)
    assert file.stat().st_size < 0.3 * 4 * sum(p.numel() for p in net.parameters())


def test_int8_does_not_overflow_on_a_cpu_that_adds_products_in_16_bits(tmp_path: Path) -> None:
    """Weights of one sign overflow first."""
    net = network(NetSpec.from_dict({**WIDE, "norm": {"gain": False}}))
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data.abs_()
    net.train()(normalizer(net.info.mean, net.info.std, torch.device("cpu"))(pictures(net.spec)))
    assert_agrees(net.eval(), tmp_path, "int8", tolerance=0.25)


def test_int8_is_calibrated_with_whatever_number_of_images(tmp_path: Path) -> None:
    net = network(NetSpec.from_dict(SMALL))
    images = pictures(net.spec)
    with torch.no_grad():
        expected = network_answer(net)(images)
    for count in (5, 37):
        file = tmp_path / f"{count}.onnx"
        FORMATS["int8"].write(ExportJob(net=net, folded=net, kind="uint8", train=images[:count]), file)
        found = agreement(FORMATS["int8"].open(file, "uint8")(images), expected, len(images))
        assert found.largest_difference <= 0.25 * max(1.0, expected.abs().max().item())


def test_a_session_unpacks_int8_weights_once_and_computes_with_them(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    file = assert_agrees(network(NetSpec.from_dict(WIDE)), tmp_path, "int8", tolerance=0.25)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    packed = [node.op_type for node in onnx.load(file).graph.node]
    optimized = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert packed.count("unpack") >= 3
    assert optimized.count("QLinearConv") == packed.count("Conv") > 5
    assert not {"unpack", "MatMulInteger", "BitShift", "Conv"} & set(optimized)


def test_packed_weights_are_the_weights() -> None:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).integers(-64, 65, (64, 32, 3, 3), dtype=np.int8)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["out"])],
        "one",
        [],
        [helper.make_tensor_value_info("out", TensorProto.INT8, weights.shape)],
        [numpy_helper.from_array(weights, "w")],
    )
    model = with_packed_weights(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    onnx.checker.check_model(model)
    assert model.ByteSize() < weights.nbytes
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {})
    np.testing.assert_array_equal(found, weights.clip(-64, 63))
    assert pack(weights).shape == (7, weights.size // 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "torch"])
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(spec=specs())
def test_any_network_can_be_exported(tmp_path_factory: pytest.TempPathFactory, name: str, spec: NetSpec) -> None:
    assert_agrees(network(spec), tmp_path_factory.mktemp("export"), name)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(spec=specs())
@torch.no_grad()
def test_folding_norms_changes_nothing_but_their_number(spec: NetSpec) -> None:
    net = network(spec)
    folded, count = fold_norms(net)
    norms = [sum(isinstance(module, Norm) for module in one.modules()) for one in (net, folded)]
    assert norms[0] - norms[1] == count
    images = pictures(spec, 16)
    expected = network_answer(net)(images)
    difference = (network_answer(folded)(images) - expected).abs().max()
    assert difference <= 1e-4 * max(1.0, expected.abs().max())


def test_norms_are_folded_where_they_can_be() -> None:
    plain = network(NetSpec.from_dict({**SMALL, "block": "basic"}))
    assert fold_norms(plain)[1] == sum(isinstance(module, Norm) for module in plain.modules()) > 5
    pooled = network(NetSpec.from_dict({**SMALL, "downsample": "maxpool"}))
    assert 0 < fold_norms(pooled)[1] < sum(isinstance(module, Norm) for module in pooled.modules())


def test_the_deployed_network_takes_what_it_says() -> None:
    net, images = network(NetSpec.from_dict(SMALL)), pictures(NetSpec.from_dict(SMALL), 4)
    with torch.no_grad():
        expected = network_answer(net)(images)
        torch.testing.assert_close(Deployed(net, "uint8")(images), expected)
        torch.testing.assert_close(Deployed(net, "float")(images / 255), expected)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the digits that is right most of the time."""
    folder = tmp_path_factory.mktemp("trained")
    spec = {**TINY["spec"], "stem": {"channels": 16}, "stages": [{"blocks": 1, "channels": n} for n in (16, 32)]}
    recipe = Recipe.from_dict({**TINY, "spec": spec, "train": {"epochs": 8, "batch_size": 64, "precision": "fp32"}})
    train(recipe, out=folder)
    return folder / "tiny" / "0"


@pytest.fixture
def run(tmp_path: Path, trained: Path) -> Path:
    """A copy of a run folder with what an export needs."""
    for name in ("recipe.yaml", "record.json", "model.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "safetensors",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("onnx", "torch", "int8", "safetensors-fp32")),
    ],
)
def test_every_format_agrees_and_says_so(
    run: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export_module.check, "_SECONDS", 0.0)
    assert main(["export", str(run), "--format", name, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (record,) = read_exports(run)
    assert printed["file"] == record.file == f"model{FORMATS[name].suffix}"
    assert record.bytes == (run / record.file).stat().st_size
    assert [(a.batch_size, a.images) for a in record.agreement] == [(1, 1000), (7, 1000), (64, 1000)]
    assert all(a.equal >= FORMATS[name].equal for a in record.agreement)
    assert record.accuracy_before == read_record(run).test.accuracy > 0.5
    assert abs(record.accuracy_after - record.accuracy_before) <= 0.01
    assert [t.batch_size for t in record.latency] == [1, 7, 64, 1, 7, 64]
    assert all(0 < t.median_ms <= t.p99_ms and t.calls >= 10 for t in record.latency)
    assert read_record(run).exports == (record,)
    assert not list(run.glob(".export*"))
    assert str(Path(resfit.__file__).parent).encode() not in (run / record.file).read_bytes()


def test_an_onnx_file_explains_itself(tmp_path: Path) -> None:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    file = assert_agrees(network(NetSpec.from_dict(SMALL)), tmp_path, "onnx")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == list(map(str, range(10)))
    assert (facts["size"], facts["channels"], facts["temperature"]) == ("12", "3", "0.5")
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(uint8)", [3, 12, 12])
    assert isinstance(images.shape[0], str)
    with pytest.raises(InvalidArgument, match="Unexpected input data type"):
        session.run(None, {"images": np.zeros((1, 3, 12, 12), np.float32)})


def test_weights_for_publishing_are_a_model_file(run: Path) -> None:
    export(run, format="safetensors")
    net, small = load(run), load(run / "model.bf16.safetensors")
    assert small.info == net.info
    assert (run / "model.bf16.safetensors").stat().st_size < 0.6 * (run / "model.safetensors").stat().st_size
    assert all(p.dtype == torch.float32 for p in small.parameters())
    assert torch.equal(small.stem.norm.running_var, net.stem.norm.running_var)
    torch.testing.assert_close(small.head.weight, net.head.weight, rtol=2**-8, atol=0)


def test_nothing_is_overwritten_and_the_list_grows(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module.check, "_SECONDS", 0.0)
    export(run, format="safetensors-fp32")
    before = (run / "model.fp32.safetensors").read_bytes()
    with pytest.raises(BadInput, match="the file already exists"):
        export(run, format="safetensors-fp32")
    assert (run / "model.fp32.safetensors").read_bytes() == before
    export(run, format="safetensors-fp32", out=run / "second.safetensors")
    assert [one.file for one in read_exports(run)] == ["model.fp32.safetensors", "second.safetensors"]


def test_an_export_that_ended_meanwhile_stays_in_the_list(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module.check, "_SECONDS", 0.0)

    def another(line: str) -> None:
        if line.startswith("timing"):
            export(run, format="safetensors")

    export(run, format="safetensors-fp32", progress=another)
    assert [one.format for one in read_exports(run)] == ["safetensors", "safetensors-fp32"]


def test_exports_of_another_network_are_not_the_runs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module.check, "_SECONDS", 0.0)
    net = load(run)
    torch.nn.init.zeros_(net.head.weight)
    resfit.save(net, run / "other.safetensors")
    for model in ("other", "model"):
        export(run / f"{model}.safetensors", format="safetensors-fp32", out=run / f"{model}.fp32.safetensors")
    assert [one.file for one in read_exports(run)] == ["other.fp32.safetensors", "model.fp32.safetensors"]
    assert [one.file for one in read_record(run).exports] == ["model.fp32.safetensors"]


def test_an_export_that_disagrees_is_an_error_and_not_kept(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shift_one_class(self: Deployed, images: Tensor) -> Tensor:
        logits = self.net(images.float() * self.scale - self.shift)
        return logits + torch.nn.functional.one_hot(torch.tensor(3), 10) * 5

    monkeypatch.setattr(Deployed, "forward", shift_one_class)
    names = {path.name for path in run.iterdir()}
    assert main(["export", str(run), "--format", "torch"]) == 1
    assert "disagrees with its network" in capsys.readouterr().err
    assert {path.name for path in run.iterdir()} == names


def test_logits_that_are_far_off_are_an_error_also_where_every_prediction_is_equal(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Deployed, "forward", lambda self, x: self.net(x.float() * self.scale - self.shift) + 5)
    assert main(["export", str(run), "--format", "torch"]) == 1
    assert "100.00% equal predictions" in (said := capsys.readouterr().err)
    assert "logits differ by" in said


def test_int8_is_calibrated_on_training_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module.check, "_SECONDS", 0.0)
    seen: list[Tensor] = []
    chosen = FORMATS["safetensors-fp32"]
    spy = replace(chosen, write=lambda job, path: seen.append(job.train) or chosen.write(job, path))
    monkeypatch.setitem(FORMATS, "safetensors-fp32", spy)
    export(run, format="safetensors-fp32")
    recipe = Recipe.from_yaml(run / "recipe.yaml")
    data = load_dataset(recipe.data, size=8, channels=1)
    assert torch.equal(seen[0], data.train.images)


def test_what_cannot_be_exported_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESFIT_DATA_DIR", raising=False)
    with pytest.raises(BadInput, match="no such format"):
        export(run, format="tflite")
    with pytest.raises(BadInput, match="only holds weights"):
        export(run, format="safetensors", input="float")
    for name, wrong in (("onnx", "net.json"), ("torch", "model.pt"), ("int8", "model"), ("safetensors", "a.bin")):
        with pytest.raises(BadInput, match=r"the file does not end in \.(onnx|pt2|safetensors)"):
            export(run, format=name, out=run / wrong)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    with pytest.raises(BadInput, match="--data"):
        export(alone, format="torch")
    with pytest.raises(BadInput, match=r"other classes|no image folder"):
        export(alone, format="torch", data="folder")
    monkeypatch.setattr(export_module, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'resfit\[export\]'"):
        export(run, format="onnx")
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    with pytest.raises(RunFailed, match="cannot write"):
        export(run, format="safetensors-fp32", out=blocked / "model.safetensors")
