"""The export formats: how each is written, opened and run, and how far it may differ from its network.

Shapes: N images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from resfit.data.normalize import normalizer
from resfit.export.deploy import Deployed, InputKind
from resfit.export.int8 import quantized
from resfit.modelfile import load, save_model
from resfit.net import Network
from resfit.version import __version__

if TYPE_CHECKING:
    import onnx

Answer = Callable[[Tensor], Tensor]  # uint8 images [N, C, H, W] to logits float32 [N, K]

# 128 images of 32x32 pixels in batches of 16; 16 larger ones, one at a time.
_CALIBRATION_PIXELS, _FEWEST_IMAGES, _BATCH_PIXELS = 2**17, 16, 2**14


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What to export: the network, the same with folded norms, the input kind, training images uint8 [N, C, H, W]."""

    net: Network
    folded: Network
    kind: InputKind
    train: Tensor


@dataclass(frozen=True, kw_only=True)
class Format:
    """An export format. `libraries` are the modules that it needs from the extra `export`.

    An export agrees with its network if the fraction of equal predictions is at least `equal` and no logit differs by
    more than `logits` times the network's largest logit (None: not checked). A graph (`is_graph`) contains
    normalization and network; other files hold weights for resfit.load.
    """

    suffix: str
    runtime: str
    libraries: tuple[str, ...] = ()
    equal: float
    logits: float | None
    is_graph: bool = True
    write: Callable[[ExportJob, Path], None]
    open: Callable[[Path, InputKind], Answer]


def network_answer(net: Network) -> Answer:
    """Return a function that computes the network's logits in PyTorch, including normalization."""
    normalize = normalizer(net.info.mean, net.info.std, torch.device("cpu"))
    return lambda images: net(normalize(images))


def _facts(job: ExportJob) -> dict[str, str]:
    """Return the metadata stored in the file: what its user needs to know."""
    scale = {"uint8": "uint8 from 0 to 255", "float": "float32 from 0 to 1"}[job.kind]
    info = job.net.info
    facts = {
        "resfit": __version__,
        "classes": json.dumps(info.classes),
        "size": str(job.net.spec.input.size),
        "channels": str(job.net.spec.input.channels),
        "input": f"images [batch, channels, height, width], {scale}, normalized inside",
        "output": "logits [batch, classes]; probabilities are softmax(logits / temperature)",
        "spec": json.dumps(job.net.spec.to_dict()),
    }
    return facts if info.temperature is None else {**facts, "temperature": repr(info.temperature)}


def _program(job: ExportJob) -> torch.export.ExportedProgram:
    """Return the deployed network as a torch.export program with dynamic batch size."""
    side, channels = job.net.spec.input.size, job.net.spec.input.channels
    dtype = torch.uint8 if job.kind == "uint8" else torch.float32
    example = torch.zeros(2, channels, side, side, dtype=dtype)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(Deployed(job.folded, job.kind), (example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it contains local paths
    return program


def _write_program(job: ExportJob, file: Path) -> None:
    with warnings.catch_warnings(category=UserWarning, action="ignore"):  # channels_last is saved correctly
        torch.export.save(_program(job), file, extra_files={"resfit.json": json.dumps(_facts(job))})


def _open_program(file: Path, kind: InputKind) -> Answer:
    module = torch.export.load(file).module()
    return lambda images: module(_as_input(images, kind))


def _as_input(images: Tensor, kind: InputKind) -> Tensor:
    return images if kind == "uint8" else images.float() / 255


def _write_onnx(job: ExportJob, file: Path) -> None:
    import onnx

    onnx.save(_with_facts(_onnx_model(job), job), file)


def _onnx_model(job: ExportJob) -> onnx.ModelProto:
    program = torch.onnx.export(
        _program(job), input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
    )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def _with_facts(model: onnx.ModelProto, job: ExportJob) -> onnx.ModelProto:
    """Return the model with `_facts` as metadata, without the exporter's metadata on every node."""
    import onnx

    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")
    onnx.helper.set_model_props(model, _facts(job))
    return model


def _open_onnx(file: Path, kind: InputKind) -> Answer:
    """Open the model in ONNX Runtime, with as many threads as PyTorch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": _as_input(images, kind).numpy()})[0])


def _write_int8(job: ExportJob, file: Path) -> None:
    import onnx

    onnx.save(_with_facts(quantized(_onnx_model(job), list(_calibration(job))), job), file)


def _calibration(job: ExportJob) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches of training images; the choice is the same for every export with the same training set."""
    pixels = job.net.spec.input.size**2
    count = max(_FEWEST_IMAGES, _CALIBRATION_PIXELS // pixels)
    order = torch.randperm(len(job.train), generator=torch.Generator().manual_seed(0))[:count]
    for index in order.split(max(1, _BATCH_PIXELS // pixels)):
        yield {"images": _as_input(job.train[index], job.kind).numpy()}


def _write_weights(dtype: torch.dtype) -> Callable[[ExportJob, Path], None]:
    """Return a writer of model files with filters and matrices in `dtype`; norms and biases stay in fp32."""

    def write(job: ExportJob, file: Path) -> None:
        net = copy.deepcopy(job.net)
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.ndim > 1:
                tensor.data = tensor.data.to(dtype)
        save_model(file, net, net.spec, net.info)

    return write


def _open_weights(file: Path, kind: InputKind) -> Answer:
    return network_answer(load(file))


_ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS: dict[str, Format] = {
    "onnx": Format(
        suffix=".onnx",
        runtime="ONNX Runtime",
        libraries=_ONNX,
        equal=0.999,
        logits=1e-3,
        write=_write_onnx,
        open=_open_onnx,
    ),
    "torch": Format(
        suffix=".pt2", runtime="PyTorch", equal=0.999, logits=1e-3, write=_write_program, open=_open_program
    ),
    "int8": Format(
        suffix=".int8.onnx",
        runtime="ONNX Runtime",
        libraries=_ONNX,
        equal=0.99,
        logits=None,
        write=_write_int8,
        open=_open_onnx,
    ),
    "safetensors-fp32": Format(
        suffix=".fp32.safetensors",
        runtime="PyTorch",
        equal=0.999,
        logits=1e-3,
        is_graph=False,
        write=_write_weights(torch.float32),
        open=_open_weights,
    ),
    "safetensors": Format(
        suffix=".bf16.safetensors",
        runtime="PyTorch",
        equal=0.99,
        logits=None,
        is_graph=False,
        write=_write_weights(torch.bfloat16),
        open=_open_weights,
    ),
}
