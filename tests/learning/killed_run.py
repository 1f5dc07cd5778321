"""A training run for a process of its own, to be killed. Usage: python killed_run.py CHECKPOINT RECORDS END [slow].

Every record is appended to RECORDS as a line of JSON; the last state and the best model go to END. With "slow" every file is written in
small pieces with a pause after each, so that a kill falls into a write as often as not, and every record takes a while.
"""

import io
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax

import lnz
from lnz._core import files
from lnz._core.checkpoint import save_tree


class SlowFile(io.BufferedRandom):
    def write(self, content):
        for start in range(0, len(content), 400):
            super().write(content[start : start + 400])
            self.flush()
            time.sleep(0.01)
        return len(content)


def run(checkpoint, records=None, pause=0.0):
    """130 data in batches of 20: the last of an epoch holds 10. Every record in the middle of an epoch, persistent chains, Adam, a best model."""
    data = (np.random.default_rng(0).random((130, 12)) < np.linspace(0.1, 0.9, 12)).astype(np.uint8)
    weights = np.random.default_rng(1).uniform(0.5, 2, 130)

    def on_record(record):
        if records is not None:
            line = {"step": record.step, "figures": record.figures, "validation": record.validation.value}
            with open(records, "a") as file:
                file.write(json.dumps(line) + "\n")
        time.sleep(pause)

    return lnz.fit(
        lnz.RBM(visible=12, hidden=5, key=jax.random.key(1), scale=0.3), data[:, ::-1], weights=weights,
        negative_phase=lnz.learning.PersistentChains(sweeps=2, chains=9), optimizer=optax.adam(0.02), epochs=8,
        batch_size=20, evaluate_every=2 / 3, validation=data[:40, ::-1], key=jax.random.key(2),
        checkpoint=checkpoint, on_record=on_record, on_progress=lambda *_: time.sleep(0.01),
    )  # fmt: skip


if __name__ == "__main__":
    checkpoint, records, end, *rest = sys.argv[1:]
    slow = rest == ["slow"]
    if slow:
        files._create = lambda path: SlowFile(io.FileIO(path, "x+"))
    print("ready", flush=True)
    try:
        fitted = run(checkpoint, records, pause=0.15 if slow else 0.0)
    except lnz.learning.Interrupted as error:
        sys.exit(f"Interrupted: {error}")
    save_tree(Path(end), (fitted.state, fitted.best), {"best_step": fitted.best_step})
