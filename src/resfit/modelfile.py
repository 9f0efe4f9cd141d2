"""Save and load model files (model.safetensors): weights, spec, class names and input normalization in one file."""

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
    """Atomically write weights, buffers, spec and `info` with a digest of all of them."""
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
    """Write a network as a model file for `load`, `predict`, `export` and `--init`, and return its path.

    Class names, and the mean and standard deviation of its inputs on the 0 to 1 scale, default to those of `net.info`.
    The temperature is not saved, as it was fitted to other weights. Raises BadInput if the number of class names, means
    or deviations is wrong, class names are not texts or not all different, a weight is not finite, the network's
    classifier is not that of its spec, or the file already exists.
    """
    file = Path(path)
    if file.exists():
        raise BadInput(f"the file already exists ({file}): give another name")
    if not isinstance(net.head, nn.Linear) or net.head.out_features != net.spec.num_classes:
        raise BadInput("the network has no classifier, or another than its spec (net): call reset_classifier")
    if not all(tensor.isfinite().all() for tensor in net.state_dict().values()):
        raise BadInput("a weight is not finite (net): such a file could not be loaded again")
    info = ModelInfo(
        classes=net.info.classes if classes is None else tuple(classes),
        mean=net.info.mean if mean is None else tuple(map(float, mean)),
        std=net.info.std if std is None else tuple(map(float, std)),
    )
    if not all(isinstance(name, str) for name in info.classes) or len({*info.classes}) < len(info.classes):
        raise BadInput("class names are not all different texts (classes): give a name for each")
    channels = net.spec.input.channels
    for name, wanted in {"classes": net.spec.num_classes, "mean": channels, "std": channels}.items():
        if (found := len(getattr(info, name))) != wanted:
            raise BadInput(f"{found} {name} for {wanted} ({name}): give one for each")
    save_model(file, net, net.spec, info)
    return file


def model_file(path: str | Path) -> Path:
    """Return `path`, or its model.safetensors if `path` is a run folder."""
    return Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)


def record_beside(path: str | Path) -> Path | None:
    """Return the record.json of the run that the model at `path` belongs to, or None."""
    file = model_file(path)
    beside = file.with_name("record.json")
    return beside if file.name == "model.safetensors" and beside.exists() else None


def load(path: str | Path) -> Network:
    """Load the network from a model.safetensors, or from a run folder that contains one, in evaluation mode.

    Its `info` has class names and normalization. Raises BadInput if the file is missing, damaged or does not match its
    digest; a file without a digest is not checked against one.
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
        with torch.random.fork_rng(devices=[]):  # the initial weights are replaced
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
