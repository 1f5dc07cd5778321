"""What notebooks show: tables with what the sentences say, escaped."""

from html.parser import HTMLParser

import jax
import numpy as np
import pytest

import lnz
from lnz._core.printing import html_table
from lnz.learning import Alarm


class Cells(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.cells, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.cells.append(data)


def shown(value):
    title, *cells = Cells(value._repr_html_()).cells
    return title, dict(zip(cells[::2], cells[1::2], strict=True))


def test_estimates():
    title, rows = shown(
        lnz.log_partition(lnz.Ising.lattice((4, 4), 0.5, periodic=False), route=lnz.routes.Elimination())
    )
    assert title == "log Z"
    assert rows["guarantee"] == "exact"
    assert float(rows["value"]) == pytest.approx(
        float(lnz.log_partition(lnz.Ising.lattice((4, 4), 0.5, periodic=False)))
    )
    route = lnz.routes.AnnealedImportanceSampling(temperatures=20, chains=32)
    estimate = lnz.log_partition(lnz.Ising.lattice((4, 4), 0.2, periodic=False), route=route, key=jax.random.key(0))
    _, rows = shown(estimate)
    assert rows["value"] in str(estimate)
    assert rows["guarantee"] == estimate.guarantee
    assert rows["route"] == estimate.route
    _, rows = shown(lnz.expectation(lnz.Ising.lattice((2, 2), 0.2, periodic=False), lambda s: s))
    assert "f64[2,2]" in rows["value"]


def test_likelihoods():
    data = np.random.default_rng(0).integers(0, 2, (40, 4))
    found = lnz.log_likelihood(lnz.RBM.from_data(data, 2, key=jax.random.key(0)), data)
    title, rows = shown(found)
    assert title == "log-likelihood"
    assert rows["nats per example"] == f"{found.value:.4f}"
    assert rows["examples"] == "40"


def test_energies_and_alarms():
    title, rows = shown(lnz.RBM(visible=4, hidden=2, key=jax.random.key(0)))
    assert title == "RBM"
    assert rows["parameters"] == "14"
    assert rows["weights"] == "float32 (4, 2)"
    title, rows = shown(Alarm(8, "lag", "R̂ < 1 & rising", "Raise sweeps"))
    assert (title, rows["seen"], rows["remedy"]) == ("alarm lag", "R̂ < 1 & rising", "Raise sweeps")
    assert "<b>" not in html_table("<b>", {"<b>": "<b>"})
