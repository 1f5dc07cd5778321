"""`lnz reference`, and what `lnz logz` does for routes that draw samples: rounds, and a picture of the annealing path."""

import json

import numpy as np
import pytest
from cli_cases import call

import lnz


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("energies") / "rbm.lnz"
    lnz.save(path, lnz.RBM.from_parameters(rng.normal(size=(5, 3)), rng.normal(size=5), rng.normal(size=3)))
    return path


def test_the_list():
    found = json.loads(call("reference", "list", "--json").out)["models"]
    assert [model["name"] for model in found] == [model.name for model in lnz.reference.reference_models()]
    assert {"title", "log_z", "gradient", "source"} < set(found[0])
    shown = call("reference", "list").out
    assert "torus-64x64-critical" in shown
    assert "3808.67228" in shown


def test_a_run():
    outcome = call("reference", "run", "--models", "torus-4x4-hot,glass-32x32", "--json")
    first, second = json.loads(outcome.out)["scores"]
    assert first["inside"]
    assert first["known"] == second["known"] == "exact"
    assert abs(second["error"]) < 1e-6
    assert "1 of 1 intervals contain the truth" in call("reference", "run", "--models", "torus-4x4-hot").out


@pytest.mark.slow
def test_rounds_and_a_picture(machine, tmp_path):
    picture = tmp_path / "path.png"
    options = ("--route", "ais", "--temperatures", 50, "--chains", 64, "--within", 9, "--plot", picture)
    found = json.loads(call("logz", machine, *options, "--json").out)
    truth = float(lnz.log_partition(lnz.load(machine)).value)
    assert found["known"] == "conditional"
    assert found["lower"] <= truth <= found["upper"]
    assert found["confidence"] == pytest.approx(0.99)
    assert found["warnings"] == []
    assert found["plot"] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    rounds = ("logz", machine, *options[:-2], "--resume", tmp_path / "runs", "--json")
    first, again = (json.loads(call(*rounds).out) for _ in range(2))
    assert first == again
    assert first["lower"] == found["lower"]
    refused = call(*rounds[:-1], "--seed", 7)
    assert refused.code == 2
    assert "use the settings it was made with" in refused.error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("reference", "run", "--models", "torus"), "no reference model 'torus': there are torus-4x4-hot"),
        (("reference", "run", "--route", "exact"), "--route exact: which exact route applies depends on the model"),
        (("reference", "run", "--route", "guess"), "--route"),
        (("logz", "FILE", "--route", "smc", "--chains", 3), "are for --route ais and bidirectional, not smc"),
        (("logz", "FILE", "--plot", "path.png"), "--plot draws an annealing path, but this route has none"),
        (("logz", "FILE", "--plot", "path.pdf"), "is not a .png file"),
        (("logz", "FILE", "--route", "tempering", "--within", 1), "Choose --route ais or smc, or leave them out"),
        (("logz", "FILE", "--within", 0), "--within: 0 is not above 0"),
        (("logz", "FILE", "--path", "moments"), "--path moments applies to annealing. Name the route that anneals"),
        (("logz", "FILE", "--resume", "runs"), "--resume keeps the runs that --within adds up"),
    ],
)
def test_what_cannot_be_done(args, message, machine):
    outcome = call(*(machine if arg == "FILE" else arg for arg in args))
    assert outcome.code == 2
    assert message in outcome.error


def test_a_path_along_averaged_moments_can_be_asked_for(key):
    from lnz._cli.commands import Effort
    from lnz._cli.measuring import choose_route

    rbm = lnz.RBM(visible=3, hidden=2, key=key)
    route = choose_route(rbm, None, Effort(temperatures=5, chains=4, route="ais"), path="moments")
    assert isinstance(route, lnz.routes.AnnealedImportanceSampling)
    assert route.base is not None
    assert isinstance(route.base.value, lnz.routes.AnnealingPath)
    assert route.unsupported_reason(rbm) is None
