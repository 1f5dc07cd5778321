"""`lnz evaluate`, `lnz logz` and `lnz sample`: what a finished run, or a saved energy, has to say."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax

import lnz
from lnz._cli import dataset, measuring, output
from lnz._cli.draw import draw
from lnz._cli.errors import BadInput, refusing
from lnz._cli.folder import RunFolder
from lnz._cli.measuring import Effort
from lnz._cli.progress import Step
from lnz._core.checkpoint import CheckpointError
from lnz._core.energy import Energy


@dataclasses.dataclass(frozen=True)
class Target:
    """A model to ask: of a run, with the base it is annealed from, or of a file.

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

    @property
    def unit(self) -> str:
        """What one datum is called."""
        return "datum" if self.run is None else dataset.Coding.from_json(self.run.config()["data"]["coding"]).unit

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
    if not run["model.lnz"].is_file():
        raise BadInput(f"{path}: the run is not finished, it has no model.lnz. Go on with: lnz train --resume {path}")
    return Target(lnz.load(run["model.lnz"]), lnz.load(run["base.lnz"]), run, config["settings"]["seed"])


def evaluate(path: Path, file: Path | None, effort: Effort, *, array: str | None, seed: int | None) -> dict[str, Any]:
    """The log-likelihood of a file, or of the run's own held-out data."""
    from lnz._cli.train import reopen

    if path.is_file():
        raise BadInput(f"{path}: is a file, and evaluate needs a run folder. For log Z alone use: lnz logz {path}")
    target = open_target(path)
    assert target.run is not None
    split = None
    if file is None:
        run = reopen(path)
        split = dataset.held_out(run.dataset.parts())
        states = run.dataset.parts()[split]
        if split != "test":
            output.note(f"the run kept no test data, so its {split} data are taken")
    else:
        config = target.run.config()
        coding = dataset.Coding.from_json(config["data"]["coding"])
        notes: list[str] = []
        found = dataset.load(str(file), array)
        states = coding.encode(found, seed=config["settings"]["split_seed"], notes=notes)
        for text in notes:
            output.note(text)
    began = time.perf_counter()
    route = measuring.choose_route(target.energy, target.base, effort)
    key = target.key(seed, 2)
    likelihood = lnz.log_likelihood(target.energy, states, route=route, key=key)
    found_json = measuring.likelihood_json(likelihood, split=split)
    return found_json | {"seconds": time.perf_counter() - began}


def log_z(
    path: Path,
    effort: Effort,
    *,
    seed: int | None,
    within: float | None,
    max_seconds: float | None,
    resume: Path | None,
    plot: Path | None,
    shown: bool = True,
) -> tuple[dict[str, Any], str]:
    """log Z of a run's model or a saved energy, and the same as a sentence.

    Args:
        within: with a route that draws samples, the width of the interval, in nats, to work for; None for one run of the effort's size.
        max_seconds: to stop at, likewise.
        resume: the file that the runs for `within` are kept in, and taken up from where it exists.
        plot: where a picture of the annealing path goes, a .png file.
        shown: whether progress is shown.
    """
    if plot is not None and plot.suffix.lower() != ".png":
        raise BadInput(f"--plot: {plot} is no .png file. Give a name that ends in .png")
    target = open_target(path)
    key = target.key(seed, 2)
    with refusing():
        route = measuring.choose_route(target.energy, target.base, effort)
        route.require(target.energy, key)
    if plot is not None and not isinstance(route, lnz.routes.AnnealedImportanceSampling | lnz.routes.BidirectionalAIS):
        raise BadInput(
            "--plot draws an annealing path, and none is walked here: add --route ais or --route bidirectional"
        )
    if (within, max_seconds) != (None, None) and route.random and not getattr(route, "unbiased", False):
        raise BadInput(
            "--within and --max-seconds add up runs whose weights have mean Z: take --route ais or smc, or leave them out"
        )
    if resume is not None and not ((within or max_seconds) and route.random):
        raise BadInput("--resume keeps the runs that --within adds up: add --within NATS and --route ais or smc")
    aim: dict[str, Any] = {"within": within, "max_seconds": max_seconds} if route.random else {}
    with Step("log Z", shown=shown) as step:
        if aim and (within or max_seconds):

            def tell(runs: int, so_far: lnz.Estimate) -> None:
                near = f"log Z between {float(so_far.lower):.2f} and {float(so_far.upper):.2f}"
                step.say(f"{runs:,} run{'s' if runs > 1 else ''}: {near}")

            aim |= {"resume": resume, "progress": tell}
        estimate = lnz.log_partition(target.energy, route=route, key=key, **aim)
    found = measuring.estimate_json(estimate)
    if plot is not None:
        from lnz.report._pictures import annealing_path
        from lnz.routes._annealing.path_diagnostics import along_path

        chosen: Any = route
        size = {"temperatures": chosen.temperatures, "chains": chosen.chains, "base": chosen.base}
        seen = along_path(target.energy, lnz.routes.AnnealedImportanceSampling(**size), jax.random.fold_in(key, 1))
        annealing_path(plot, seen, estimate)
        found["plot"] = str(plot)
    return found, str(estimate)


def sample(
    path: Path, n: int, out: Path, *, force: bool, seed: int | None, temperatures: int, sweeps: int
) -> dict[str, Any]:
    """Draw states of a model and write them to a file."""
    if out.exists() and not force:
        raise BadInput(f"{out}: exists already. Choose another name, or replace it by --force")
    target = open_target(path)
    image_shape = None
    if target.run is not None:
        image_shape = dataset.Coding.from_json(target.run.config()["data"]["coding"]).image_shape
    with refusing():
        states, how = draw(target.energy, target.base, n, target.key(seed, 3), temperatures=temperatures, sweeps=sweeps)
        states = target.energy.visible_part(states)
        lnz.io.save_samples(out, states, image_shape, force=force)
    return {"n": n, "out": str(out), "shape": list(states.shape), "dtype": str(states.dtype), "how": how}
