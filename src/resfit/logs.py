"""Loggers that send training curves to TensorBoard and MLflow. They observe a run and do not affect it."""

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

_LONGEST_VALUE = 500  # parameter length, in characters, that every MLflow server accepts


def make_loggers(wanted: Sequence[str]) -> list[Observer]:
    """Return loggers for `tensorboard`, `mlflow` or `mlflow=URI`; raise BadInput for other or missing packages."""
    return [_make_logger(text) for text in wanted]


def _make_logger(text: str) -> Observer:
    name, _, address = text.partition("=")
    if name not in _LOGGERS or (address and name != "mlflow"):
        raise BadInput(f"no such log ({text}): {nearest(name, [*_LOGGERS, 'mlflow=URI'])}")
    if find_spec(name) is None:
        raise BadInput(f"{name} is not installed (--log {name}): pip install 'resfit[log]'")
    return MLflowLogger(address) if name == "mlflow" else TensorBoardLogger()


class _Log(Observer, ABC):
    """Base class of loggers of each epoch's scalars and the test scores.

    An error while logging, after the run has started, stops the logger but not the run.
    """

    name: str
    ended = False

    def epoch_ended(self, point: EpochPoint) -> None:
        """Log the epoch's values."""
        self._attempt(lambda: self.write(_epoch_values(point), point.epoch))

    def finished(self, record: RunRecord) -> None:
        """Log the test scores and close the log."""
        self._attempt(lambda: self.write(_result_values(record), record.epochs))
        self._attempt(self.close)

    @abstractmethod
    def write(self, values: Iterable[tuple[str, float]], step: int) -> None:
        """Log named values."""

    @abstractmethod
    def close(self) -> None:
        """Close the log."""

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            if not self.ended:
                work()
        except Exception as error:  # for example an unreachable server or a full disk
            self.ended = True
            print(f"{self.name}: logging stopped: {_reason(error)}", file=sys.stderr)


class TensorBoardLogger(_Log):
    """Write TensorBoard events into the run folder's tensorboard/."""

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
    """Log to the MLflow server at `address`, or to mlflow.db in the run folder, with the recipe's fields as parameters.

    The MLflow run id is stored in the run folder, so that a resumed run continues the same log.
    """

    name = "mlflow"

    def __init__(self, address: str = "") -> None:
        self.address = address

    def started(self, recipe: Recipe, data: Dataset, folder: Path, note: str) -> None:
        """Create or reopen the MLflow run; raise BadInput if the server cannot be reached."""
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # both log every table that they create
            logging.getLogger(name).setLevel(logging.WARNING)
        address = self.address or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        try:
            self.client: Any = MlflowClient(tracking_uri=address)
            self.run_id = self._run(folder, recipe)
        except Exception as error:  # the client raises many exception types
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
        """Mark the MLflow run as finished."""
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
