"""Records of learning for TensorBoard, Weights & Biases and MLflow, with stand-ins for the three."""

import math

import jax
import numpy as np
import pytest

import lnz
from lnz.learning import Record

RECORD = Record(8, 2.0, 0.5, {"energy": -1.5, "flips": math.nan})


class Tracker:
    """What the three packages have, kept in a list of (name, number, step)."""

    def __init__(self):
        self.seen = []

    def add_scalar(self, tag, scalar_value, global_step=None, walltime=None, new_style=False):
        self.seen.append((tag, scalar_value, global_step))

    def log(self, data, step=None):
        self.seen += [(name, number, step) for name, number in data.items()]

    def log_metrics(self, metrics, step=None):
        assert all(math.isfinite(number) for number in metrics.values())
        self.seen += [(name, number, step) for name, number in metrics.items()]


@pytest.mark.parametrize("maker", [lnz.interop.to_tensorboard, lnz.interop.to_wandb, lnz.interop.to_mlflow])
def test_every_number_of_a_run_is_written_with_its_step(maker):
    data = np.random.default_rng(0).integers(0, 2, (40, 4))
    rbm, tracker = lnz.RBM.from_data(data, 2, key=jax.random.key(0)), Tracker()
    fitted = lnz.fit(
        rbm,
        data,
        epochs=3,
        batch_size=20,
        validation=data,
        key=jax.random.key(1),
        on_record=maker(tracker, prefix="p:"),
    )
    last = {name.removeprefix("p:"): number for name, number, step in tracker.seen if step == 6}
    assert {step for _, _, step in tracker.seen} == {2, 4, 6}
    assert all(name.startswith("p:") for name, _, _ in tracker.seen)
    record = fitted.history[-1]
    assert last["epoch"] == 3
    assert last["energy"] == record.figures["energy"]
    assert last["validation"] == record.validation.value
    assert last["validation_lower"] <= last["validation"] <= last["validation_upper"]
    assert last["log_z"] == float(record.validation.log_z)


def test_numbers_that_are_not_finite_reach_those_that_take_them():
    board, flow = Tracker(), Tracker()
    lnz.interop.to_tensorboard(board)(RECORD)
    lnz.interop.to_mlflow(flow)(RECORD)
    assert {name for name, _, _ in board.seen} == {"lnz/epoch", "lnz/seconds", "lnz/energy", "lnz/flips"}
    assert {name for name, _, _ in flow.seen} == {"lnz.epoch", "lnz.seconds", "lnz.energy"}
