"""Training curves for TensorBoard and MLflow, beside metrics.jsonl. They watch a run and change nothing in it."""

from __future__ import annotations

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit.environment import without_password
from resfit.errors import BadInput
from resfit.fields import leaves, nearest, to_plain
from resfit.observer import Observer

if TYPE_CHECKING:
    from resfit.data import Dataset
    from resfit.recipe import Recipe
    from resfit.record import EpochPoint, RunRecord

_LONGEST_VALUE = 500  # characters of a parameter that every MLflow server takes


def make_loggers(wanted: Sequence[str]) -> list[Observer]:
    """The loggers of `tensorboard`, `mlflow` or `mlflow=URI`; raises BadInput for others and for missing packages."""
    return [_make_logger(text) for text in wanted]


def _make_logger(text: str) -> Observer:
    name, _, address = text.partition("=")
    if name not in _LOGGERS or (address and name != "mlflow"):
        raise BadInput(f"no such log ({text}): {nearest(name, [*_LOGGERS, 'mlflow=URI'])}")
    if find_spec(name) is None:
        raise BadInput(f"{name} is not installed (--log {name}): pip install 'resfit[log]'")
    return MLflowLogger(address) if name == "mlflow" else TensorBoardLogger()


class Observers(Observer):
    """Several observers of one run, told in their order."""

    def __init__(self, members: Iterable[Observer]) -> None:
        self.members = list(members)

    def started(self, recipe: Recipe, data: Dataset, folder: Path, note: str) -> None:
        """Tell all."""
        for member in self.members:
            member.started(recipe, data, folder, note)

    def stepped(self, epoch: int, done: float) -> None:
        """Tell all."""
        for member in self.members:
            member.stepped(epoch, done)

    def epoch_ended(self, point: EpochPoint) -> None:
        """Tell all."""
        for member in self.members:
            member.epoch_ended(point)

    def finished(self, record: RunRecord) -> None:
        """Tell all."""
        for member in self.members:
            member.finished(record)

    def message(self, text: str) -> None:
        """Tell all."""
        for member in self.members:
            member.message(text)


class _Log(Observer, ABC):
    """Scalars of each epoch and of the test set. Its trouble, once the run has begun, ends the log and not the run."""

    name: str
    ended = False

    def epoch_ended(self, point: EpochPoint) -> None:
        """The epoch's curve."""
        self._attempt(lambda: self.write(_epoch_values(point), point.epoch))

    def finished(self, record: RunRecord) -> None:
        """The test set's scores; the log is over."""
        self._attempt(lambda: self.write(_result_values(record), record.epochs))
        self._attempt(self.close)

    @abstractmethod
    def write(self, values: Iterable[tuple[str, float]], step: int) -> None:
        """Log named values."""

    @abstractmethod
    def close(self) -> None:
        """End the log."""

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            if not self.ended:
                work()
        except Exception as error:  # a server that is gone, a full disk
            self.ended = True
            print(f"{self.name} logs no more: {_reason(error)}", file=sys.stderr)


class TensorBoardLogger(_Log):
    """In the run folder's tensorboard/."""

    name = "tensorboard"

    def started(self, recipe: Recipe, data: Dataset, folder: Path, note: str) -> None:
        """Open the events file."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder / "tensorboard"))
        self.writer.add_text("recipe", f"```yaml\n{recipe.to_yaml()}```")

    def write(self, values: Iterable[tuple[str, float]], step: int) -> None:
        """Log named values."""
        for name, value in values:
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the events file."""
        self.writer.close()


class MLflowLogger(_Log):
    """At `address` or in the run folder's mlflow.db, with the recipe's fields as they were when the run began.

    The run's id is kept in the run folder, so that a resumed run goes on with its log.
    """

    name = "mlflow"

    def __init__(self, address: str = "") -> None:
        self.address = address

    def started(self, recipe: Recipe, data: Dataset, folder: Path, note: str) -> None:
        """Open the run; raises BadInput where the server does not answer."""
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # they tell of every table that they make
            logging.getLogger(name).setLevel(logging.WARNING)
        address = self.address or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        try:
            self.client: Any = MlflowClient(tracking_uri=address)
            self.run_id = self._run(folder, recipe)
        except Exception as error:  # the client raises many kinds
            where = without_password(address)
            raise BadInput(
                f"MLflow cannot be reached ({where}: {_reason(error)}): give another --log mlflow=URI"
            ) from None

    def _run(self, folder: Path, recipe: Recipe) -> str:
        kept = folder / "mlflow_run_id.txt"
        if kept.exists():
            return kept.read_text().strip()
        experiment = self.client.get_experiment_by_name("resfit")
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment("resfit")
        run = self.client.create_run(experiment_id, run_name=f"{recipe.name}/{folder.name}")
        for name, value in leaves(recipe.to_dict()).items():
            self.client.log_param(run.info.run_id, name, str(value)[:_LONGEST_VALUE])
        kept.write_text(run.info.run_id + "\n")
        return str(run.info.run_id)

    def write(self, values: Iterable[tuple[str, float]], step: int) -> None:
        """Log named values."""
        for name, value in values:
            self.client.log_metric(self.run_id, name, value, step=step)

    def close(self) -> None:
        """Say that the run is over."""
        self.client.set_terminated(self.run_id)


_LOGGERS = {"tensorboard": TensorBoardLogger, "mlflow": MLflowLogger}


def _reason(error: Exception) -> str:
    return without_password(" ".join(str(error).split()))[:120]


def _epoch_values(point: EpochPoint) -> Iterator[tuple[str, float]]:
    for name, value in to_plain(point).items():
        if name != "epoch" and value is not None:
            yield name.replace("_", "/", 1), value


def _result_values(record: RunRecord) -> Iterator[tuple[str, float]]:
    yield "result/test_accuracy", record.test.accuracy
    if record.test.accuracy_tta is not None:
        yield "result/test_accuracy_tta", record.test.accuracy_tta
    yield "result/test_loss", record.test.loss
    yield "result/params", record.params
    yield "result/seconds", record.seconds_to_result
