"""model.safetensors: a network in one file, with all that is needed to build and feed it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from resfit.cost import cost
from resfit.errors import BadInput, unreadable
from resfit.fields import from_plain, to_plain
from resfit.files import write_atomic
from resfit.modelheader import ModelInfo, read_header, with_digest
from resfit.net import Network, build
from resfit.spec import NetSpec


def save_model(path: Path, net: nn.Module, spec: NetSpec, info: ModelInfo) -> None:
    """Write weights, buffers, spec and `info`, with a digest of it all, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    metadata = {"format": "pt", "resfit.spec": json.dumps(spec.to_dict()), "resfit.info": json.dumps(to_plain(info))}
    write_atomic(path, with_digest(safetensors.torch.save(tensors, metadata)))


def save(
    net: Network,
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Path:
    """Write a network as a model file, which `load`, `predict`, `export` and `--init` take, and return its path.

    Class names, and mean and deviation of its inputs on the 0 to 1 scale, are those of `net.info` unless given; a
    temperature is not kept, as it was fitted to other weights. Raises BadInput where names are missing, for a network
    without a classifier, or a file that exists already.
    """
    file = Path(path)
    if file.exists():
        raise BadInput(f"a file exists already ({file}): give another name")
    if not isinstance(net.head, nn.Linear):
        raise BadInput("the network has no classifier (net): give it one with reset_classifier")
    info = ModelInfo(
        classes=net.info.classes if classes is None else tuple(classes),
        mean=net.info.mean if mean is None else tuple(mean),
        std=net.info.std if std is None else tuple(std),
    )
    channels = net.spec.input.channels
    for name, wanted in {"classes": net.spec.num_classes, "mean": channels, "std": channels}.items():
        if (found := len(getattr(info, name))) != wanted:
            raise BadInput(f"{found} {name} for {wanted} ({name}): give one for each")
    save_model(file, net, net.spec, info)
    return file


def model_file(path: str | Path) -> Path:
    """The model file at `path`: itself, or the one of the run folder."""
    return Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)


def record_beside(path: str | Path) -> Path | None:
    """The record.json of the run whose own network lies at `path`; None for any other model file."""
    file = model_file(path)
    beside = file.with_name("record.json")
    return beside if file.name == "model.safetensors" and beside.exists() else None


def load(path: str | Path) -> Network:
    """The network of a model.safetensors, or of the run folder that holds one, in evaluation mode.

    Its `info` holds class names and normalization. Raises BadInput where the file is not whole, or not what its digest
    says; a file without one is taken as it is.
    """
    file = model_file(path)
    try:
        content = file.read_bytes()
        metadata, tensors = read_header(content).get("__metadata__", {}), safetensors.torch.load(content)
        spec = NetSpec.from_dict(json.loads(metadata["resfit.spec"]))
        if cost(spec).params > sum(tensor.numel() for tensor in tensors.values()):
            raise ValueError("it holds fewer weights than its spec has parameters")
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("a weight is not finite")
        with torch.random.fork_rng(devices=[]):  # the weights that it begins with are replaced
            net = build(spec)
        net.load_state_dict(tensors)
        net.info = from_plain(ModelInfo, json.loads(metadata["resfit.info"]))
    except FileNotFoundError:
        raise BadInput(f"no model ({file}): give a run folder or a model.safetensors") from None
    except KeyError as error:
        raise BadInput(f"not a resfit model ({file}): its metadata lacks {error}") from None
    except OSError as error:
        raise unreadable("model", file, error) from None
    except (RuntimeError, ValueError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        what = "damaged model" if file.suffix == ".safetensors" else "not a model.safetensors"
        raise BadInput(f"{what} ({file}): {(str(error).splitlines() or [type(error).__name__])[0][:120]}") from None
    return net.eval()
