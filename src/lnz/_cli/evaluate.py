"""`lnz evaluate`, `lnz logz` and `lnz sample`: measurements of a finished run, or of a saved energy."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lnz
from lnz._cli import dataset, measuring, output, show, train
from lnz._cli.commands import Evaluate, LogZ, Sample, known
from lnz._cli.draw import draw
from lnz._cli.errors import BadInput, refusing
from lnz._cli.folder import RunFolder, held_out
from lnz._cli.process import prepare_jax
from lnz._cli.progress import Step
from lnz._core.capabilities import observed_space, visible_part
from lnz._core.checkpoint import CheckpointError
from lnz._core.energy import Energy
from lnz.report._pictures import annealing_path
from lnz.routes._annealing.path_diagnostics import along_path


@dataclasses.dataclass(frozen=True)
class Target:
    """A model: of a run, with the base it is annealed from, or of a file.

    Attributes:
        energy: the model.
        base: what to anneal from; None for the energy's own.
        run: the run folder, or None.
        seed: the run's seed, or 0.
    """

    energy: Energy
    base: Energy | None
    run: RunFolder | None
    seed: int

    def key(self, seed: int | None, purpose: int) -> Any:
        """A random key: without a seed, the one that the run itself used for this purpose (2: log Z, 3: samples)."""
        return jax.random.split(jax.random.key(self.seed if seed is None else seed), 4)[purpose]


def open_target(path: Path) -> Target:
    """A run folder or a file of a saved energy. Raises BadInput or CheckpointError for anything else."""
    if path.is_file():
        try:
            return Target(lnz.load(path), None, None, 0)
        except CheckpointError as error:
            if path.suffix == ".lnz":
                raise
            what = "holds no saved energy. Give a run folder, or a file that lnz.save wrote"
            raise BadInput(f"{path}: {what}") from error
    run = RunFolder.open(path)
    config = run.config()
    return Target(lnz.load(run["model.lnz"]), lnz.load(run["base.lnz"]), run, config["settings"]["seed"])


def evaluate(options: Evaluate) -> None:
    """The log-likelihood of a file, or of the run's own held-out data."""
    prepare_jax()
    with Step("reading the data"):
        target, split = open_target(options.run), None
        if options.file is None:
            run = train.reopen(options.run)
            split = held_out(run.dataset.parts())
            states, coding = run.dataset.parts()[split], run.dataset.coding
            if split != "test":
                output.note(f"the run kept no test data; its {split} data are used instead")
        else:
            states, coding = _coded(options)
    began = time.perf_counter()
    results = known(options.run, options.effort, options.seed)
    with Step("log Z and the likelihood"):
        if results is None:
            route, log_z = measuring.choose_route(target.energy, target.base, options.effort), None
        else:
            route, log_z = None, measuring.estimate_from_json(results["log_z_estimate"])
        key = target.key(options.seed, 2)
        likelihood = lnz.log_likelihood(target.energy, states, route=route, key=key, log_z=log_z)
    found = measuring.likelihood_json(likelihood, split=split) | {"seconds": time.perf_counter() - began}
    name = options.file.name if options.file else str(split)
    show.likelihood(found, unit=coding.unit, name=name, as_json=options.json)


def _coded(options: Evaluate) -> tuple[np.ndarray, dataset.Coding]:
    """The states of the file that is to be evaluated, coded as the run's own data."""
    config, notes = RunFolder(options.run).config(), []
    coding = dataset.Coding.from_json(config["data"]["coding"])
    found = dataset.load(str(options.file), options.array)
    states = coding.encode(found, seed=config["settings"]["split_seed"], notes=notes)
    for text in notes:
        output.note(text)
    return states, coding


def log_z(options: LogZ) -> None:
    """log Z of a run's model or a saved energy."""
    prepare_jax()
    within, max_seconds = options.within, options.max_seconds
    with Step("opening the model, and choosing a route"), refusing():
        target = open_target(options.run)
        key = target.key(options.seed, 2)
        route = measuring.choose_route(target.energy, target.base, options.effort, path=options.path)
        route.require(target.energy, key)
    if options.plot is not None and not isinstance(
        route, lnz.routes.AnnealedImportanceSampling | lnz.routes.BidirectionalAIS
    ):
        raise BadInput(
            "--plot draws an annealing path, but this route has none. Add --route ais or --route bidirectional"
        )
    if options.resume is not None and not route.random:
        raise BadInput("--resume keeps the runs that --within adds up. Add --within NATS and --route ais or smc")
    aim = {"within": within, "max_seconds": max_seconds} if route.random else {}
    aim = {name: number for name, number in aim.items() if number is not None}
    with Step(f"log Z by {type(route).__name__}: compiling, then computing") as step:
        if aim:
            estimate = lnz.log_partition_to_accuracy(
                target.energy, route, key, **aim, resume=options.resume, progress=step.say_runs("log Z")
            )
        else:
            estimate = lnz.log_partition(target.energy, route=route, key=key)
    found = measuring.estimate_json(estimate)
    if options.plot is not None:
        chosen: Any = route
        size = {"temperatures": chosen.temperatures, "chains": chosen.chains, "base": chosen.base}
        with Step("diagnostics along the path, and the picture"):
            seen = along_path(target.energy, lnz.routes.AnnealedImportanceSampling(**size), jax.random.fold_in(key, 1))
            annealing_path(options.plot, seen, estimate)
        found["plot"] = str(options.plot)
    show.log_z(found, str(estimate), as_json=options.json)


def sample(options: Sample) -> None:
    """Draw states of a model and write them to a file."""
    prepare_jax()
    with Step("opening the model"):
        target, image_shape = open_target(options.run), None
    if target.run is None and len(observed_space(target.energy).shape) != 2:
        options.refuse_picture()
    if target.run is not None:
        image_shape = dataset.Coding.from_json(target.run.config()["data"]["coding"]).image_shape
    with Step(f"drawing {options.n:,} samples"), refusing():
        key, effort = target.key(options.seed, 3), {"temperatures": options.temperatures, "sweeps": options.sweeps}
        states, how = draw(target.energy, target.base, options.n, key, **effort)
        states = visible_part(target.energy, states)
        if image_shape is None and states.ndim == 3:  # a lattice is its own picture
            image_shape = states.shape[1:]
        lnz.io.save_samples(options.out, states, image_shape, force=options.force)
    found = {
        "n": options.n,
        "out": str(options.out),
        "shape": list(states.shape),
        "dtype": str(states.dtype),
        "how": how,
    }
    show.sampling(found, as_json=options.json)
