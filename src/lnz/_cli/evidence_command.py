"""`lnz evidence FILE.py:MODEL`: the user's own model is run, and its evidence computed."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import lnz
from lnz._cli import measuring, show
from lnz._cli.errors import BadInput, refusing
from lnz._cli.evidence_options import Evidence, read_arguments
from lnz._cli.process import prepare_jax
from lnz._cli.progress import Step
from lnz._cli.user_code import checked_target, run_for


def evidence(options: Evidence) -> None:
    """The evidence of MODEL in FILE.py, with the arguments of a file."""
    prepare_jax()
    path, name = checked_target(options.target, "model", "schools.py:model")
    with Step(f"running {path}"):
        model = run_for(path, name)
    arguments: dict[str, Any] = {} if options.data is None else read_arguments(options.data)
    arguments = {name: np.asarray(x) if isinstance(x, list) else x for name, x in arguments.items()}
    if arguments and not callable(model):
        raise BadInput(f"--data is for the arguments of a function, but {name!r} is not one. Leave it out")
    aim = {"within": options.within, "max_seconds": options.max_seconds}
    with Step(f"evidence of {name}: compiling, then computing") as step, refusing():
        found = lnz.evidence(
            model,
            key=jax.random.key(options.seed),
            progress=step.say_runs("log evidence"),
            **{name: number for name, number in aim.items() if number is not None},
            **arguments,
        )
    facts = measuring.estimate_json(found.estimate)
    facts = {"log_evidence": facts.pop("log_z"), **facts, "sentence": str(found)}
    show.log_z(facts, str(found), as_json=options.json)
