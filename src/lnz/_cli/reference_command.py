"""`lnz reference`: the models whose log Z is known, and how a route does on them."""

from __future__ import annotations

from typing import Any

import jax

import lnz
from lnz._cli.errors import BadInput, refusing
from lnz._cli.measuring import ROUTES
from lnz._cli.progress import Step
from lnz.reference._score import Scores


def listed() -> list[dict[str, Any]]:
    """Every reference model as plain values."""
    return [
        {
            "name": model.name,
            "title": model.title,
            "log_z": model.log_z,
            "gradient": model.slopes is not None,
            "source": model.source,
        }
        for model in lnz.reference.reference_models()
    ]


def run(route: str, names: list[str], seed: int) -> Scores:
    """The scores of a named route (`auto`: what `lnz.choose` picks) on the named models, or on all."""
    if route == "exact":
        raise BadInput(f"--route exact: which sum it is depends on the model. Give auto, or one of {', '.join(ROUTES)}")
    with refusing():
        models = lnz.reference.reference_models(*names)
    chosen = None if route == "auto" else ROUTES[route]()
    scores = []
    for i, model in enumerate(models):
        with Step(f"{model.name} ({i + 1} of {len(models)})"):
            scores += lnz.reference.score_route(chosen, models=[model], key=jax.random.fold_in(jax.random.key(seed), i))
    return Scores(scores)
