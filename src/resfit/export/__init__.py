"""Export a trained network to a deployment format and verify the export against the network."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from math import inf
from pathlib import Path

import torch
from torch import Tensor

from resfit.environment import environment
from resfit.errors import BadInput, RunFailed
from resfit.evaluate import accuracy
from resfit.export.check import agreement, agreements, latency, logits_of
from resfit.export.deploy import InputKind, fold_norms
from resfit.export.formats import FORMATS, ExportJob, Format, network_answer
from resfit.fields import to_plain
from resfit.files import sha256, write_atomic
from resfit.latency import torch_threads
from resfit.modelfile import model_file
from resfit.net import Network
from resfit.record import EXPORTS, Agreement, ExportRecord, read_exports
from resfit.trained import Trained
from resfit.version import __version__

__all__ = ["FORMATS", "export"]

FOLD_TOLERANCE = 1e-4  # largest change of a logit by folding norms, relative to the largest logit
_FEWEST, _BATCH = 1000, 250  # minimum number of images to compare on, batch size


def export(
    target: str | Path,
    *,
    format: str,
    out: str | Path | None = None,
    input: InputKind = "uint8",
    data: str | None = None,
    data_dir: str | Path | None = None,
    offline: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> ExportRecord:
    """Write the network of a run folder or model file in one of FORMATS, verify it, and return the measurements.

    The verification needs the data that the network was trained on: the test images, and also training images if there
    are fewer than 1,000 test images, or for int8. Accuracies are on test images only. The file `out` (by default the
    model's name with the format's extension) is created only if it agrees with the network; the measurements are
    appended to export.json in the same folder. Raises BadInput if the file exists or something is missing, RunFailed if
    the export disagrees.
    """
    if format not in FORMATS:
        raise BadInput(f"no such format ({format}): choose from {', '.join(FORMATS)}")
    chosen, model = FORMATS[format], model_file(target)
    if input == "float" and not chosen.is_graph:
        raise BadInput(f"{format} only holds weights (--input): leave it out")
    file = Path(out) if out is not None else model.with_name(model.stem + chosen.suffix)
    ending = f".{chosen.suffix.rpartition('.')[2]}"
    if file.suffix != ending:
        raise BadInput(f"the file does not end in {ending} ({file}): {chosen.runtime} may not open it; rename it")
    _require_free(file)
    _require_libraries(chosen, format)
    read_exports(file.parent)  # it has to be readable, as this export is added to it
    trained = Trained(model)
    net, dataset = trained.net, trained.data(data, data_dir=data_dir, offline=offline, progress=progress)
    tested, labels = len(dataset.test), dataset.test.labels
    images = torch.cat((dataset.test.images, dataset.train.images[: max(0, _FEWEST - tested)]))
    answer = network_answer(net)
    expected = logits_of(answer, images, _BATCH)
    folded, norms = _folded(net, images[:_FEWEST], expected[:_FEWEST])
    with _draft(file) as draft:
        progress(f"writing {file}")
        chosen.write(ExportJob(net=net, folded=folded, kind=input, train=dataset.train.images), draft)
        progress(f"comparing it with the network on {len(images):,} images")
        exported = chosen.open(draft, input)
        found, logits = agreements(exported, images, expected)
        _require_agreement(found, chosen, expected.abs().max().item())
        progress("timing both on one thread")
        with torch_threads(1):
            times = [*latency(answer, images, "network, PyTorch")]
            times += latency(chosen.open(draft, input), images, f"export, {chosen.runtime}")
        record = ExportRecord(
            resfit=__version__,
            file=file.name,
            format=format,
            input=input if chosen.is_graph else None,
            runtime=chosen.runtime,
            bytes=draft.stat().st_size,
            bytes_before=model.stat().st_size,
            norms_folded=norms if chosen.is_graph else 0,
            data=dataset.name,
            agreement=tuple(found),
            smallest_equal=chosen.equal,
            largest_allowed=chosen.logits and chosen.logits * expected.abs().max().item(),
            accuracy_before=accuracy(expected[:tested], labels),
            accuracy_after=accuracy(logits[:tested], labels),
            latency=tuple(times),
            env=environment(torch.device("cpu")),
            model_sha256=sha256(model),
        )
        _require_free(file)
        draft.rename(file)
    known = [*read_exports(file.parent), record]  # read again: another export may have ended meanwhile
    write_atomic(file.parent / EXPORTS, json.dumps([to_plain(one) for one in known], indent=1))
    return record


def _require_free(file: Path) -> None:
    if file.exists():
        raise BadInput(f"the file already exists ({file}): give another --out, or move it away")


def _require_libraries(chosen: Format, name: str) -> None:
    missing = [library for library in chosen.libraries if find_spec(library) is None]
    if missing:
        raise BadInput(f"{name} needs {', '.join(missing)} (--format): pip install 'resfit[export]'")


def _folded(net: Network, images: Tensor, expected: Tensor) -> tuple[Network, int]:
    """Return the network with norms folded, and their number; itself and 0 if folding changes its logits."""
    folded, count = fold_norms(net)
    logits = logits_of(network_answer(folded), images, _BATCH)
    change = agreement(logits, expected, _BATCH).largest_difference
    return (folded, count) if change <= FOLD_TOLERANCE * expected.abs().max().item() else (net, 0)


def _require_agreement(found: Sequence[Agreement], chosen: Format, largest_logit: float) -> None:
    for one in found:
        allowed = inf if chosen.logits is None else chosen.logits * largest_logit
        apart = f", logits differ by {one.largest_difference:.3g} (limit {allowed:.3g})" if allowed < inf else ""
        if one.equal < chosen.equal or one.largest_difference > allowed:
            raise RunFailed(
                f"the export disagrees with its network: {one.equal:.2%} equal predictions, at least "
                f"{chosen.equal:.1%} required{apart} (batches of {one.batch_size}): the file was deleted; "
                "use another format"
            )


@contextmanager
def _draft(file: Path) -> Iterator[Path]:
    """Yield a temporary path on the same file system as `file`; it is deleted unless moved away."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".export-") as folder:
            yield Path(folder) / file.name
    except OSError as error:
        raise RunFailed(
            f"cannot write {file} ({error.strerror or error}): free some space, or give another --out"
        ) from None
