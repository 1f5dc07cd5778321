"""Records of learning for experiment trackers: functions for `lnz.fit(on_record=…)`, each around the tracker's own writer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lnz.learning import Record


def record_numbers(record: Record) -> dict[str, float]:
    """The numbers of a record by name: epoch, seconds, the figures of the updates, and the validation log-likelihood with its interval, in nats."""
    numbers = {"epoch": record.epoch, "seconds": record.seconds, **record.figures}
    if record.validation is not None:
        found = record.validation
        numbers |= {"validation": found.value, "validation_lower": found.lower, "validation_upper": found.upper}
        numbers |= {"log_z": float(found.log_z.value)}
    return numbers


def to_tensorboard(writer: Any, *, prefix: str = "lnz/") -> Callable[[Record], None]:
    """A function for `on_record` that writes to a `SummaryWriter` of TensorBoard (`torch.utils.tensorboard` or `tensorboardX`).

    Example:
        >>> import lnz  # doctest: +SKIP
        >>> lnz.fit(rbm, data, key=key, on_record=lnz.interop.to_tensorboard(SummaryWriter("runs/rbm")))  # doctest: +SKIP
    """

    def write(record: Record) -> None:
        for name, number in record_numbers(record).items():
            writer.add_scalar(prefix + name, number, record.step)

    return write


def to_wandb(run: Any, *, prefix: str = "lnz/") -> Callable[[Record], None]:
    """A function for `on_record` that logs to a run of Weights & Biases (what `wandb.init` returns, or the module `wandb`).

    Example:
        >>> import lnz, wandb  # doctest: +SKIP
        >>> lnz.fit(rbm, data, key=key, on_record=lnz.interop.to_wandb(wandb.init(project="rbm")))  # doctest: +SKIP
    """

    def log(record: Record) -> None:
        run.log({prefix + name: number for name, number in record_numbers(record).items()}, step=record.step)

    return log


def to_mlflow(mlflow: Any, *, prefix: str = "lnz.") -> Callable[[Record], None]:
    """A function for `on_record` that logs to the active run of MLflow (the module `mlflow`).

    MLflow refuses numbers that are not finite: they are left out.

    Example:
        >>> import lnz, mlflow  # doctest: +SKIP
        >>> lnz.fit(rbm, data, key=key, on_record=lnz.interop.to_mlflow(mlflow))  # doctest: +SKIP
    """

    def log(record: Record) -> None:
        numbers = record_numbers(record).items()
        finite = {prefix + name: number for name, number in numbers if abs(number) < float("inf")}
        mlflow.log_metrics(finite, step=record.step)

    return log
