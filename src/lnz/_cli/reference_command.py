"""`lnz reference`: the models whose log Z is known, and how a route does on them."""

from __future__ import annotations

import jax

import lnz
from lnz._cli import show
from lnz._cli.commands import ReferenceList, ReferenceRun
from lnz._cli.measuring import ROUTES
from lnz._cli.process import prepare_jax
from lnz._cli.progress import Step
from lnz.reference._score import Scores


def list_models(options: ReferenceList) -> None:
    """Every reference model."""
    prepare_jax()
    models = [
        {
            "name": model.name,
            "title": model.title,
            "log_z": model.log_z,
            "gradient": model.slopes is not None,
            "source": model.source,
        }
        for model in lnz.reference.reference_models()
    ]
    show.reference_models(models, as_json=options.json)


def run(options: ReferenceRun) -> None:
    """The scores of a named route (`auto`: what `lnz.choose` picks) on the named models, or on all."""
    prepare_jax()
    models = lnz.reference.reference_models(*options.models)
    chosen = None if options.route == "auto" else ROUTES[options.route]()
    key, scores = jax.random.key(options.seed), []
    for i, model in enumerate(models):
        with Step(f"{model.name} ({i + 1} of {len(models)})"):
            scores += lnz.reference.score_route(chosen, models=[model], key=jax.random.fold_in(key, i))
    show.scores(Scores(scores), as_json=options.json)
