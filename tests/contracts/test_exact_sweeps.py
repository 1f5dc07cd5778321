"""T10 to rounding for Gibbs sweeps of every layout and for Swendsen-Wang moves: π P = π, and π(x) P(x → y) = π(y) P_back(y → x).

P is summed over all draws of the kernel's own compiled code. Sweeps with continuous draws (`GaussianRBM`) cannot be listed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from contracts.energies import Case, ising_lattice, named, potts_lattice, potts_sparse, rbm
from contracts.kernels import base_of, function_of_categories, tempered_weights
from contracts.routes import as_states
from contracts.transitions import EXACT, assert_invariant, dealt_transitions
from listing import lattice_bonds, normalised, states
from lnz._models import units

BETA = 0.6


@dataclasses.dataclass(frozen=True)
class Sweeps:
    """A model and how many combinations of draws a sweep of it has.

    Attributes:
        build: the energy, all its observed states, and their law, found without the library.
        outcomes: values to the power of draws. A class that is padded to the longest draws for its empty places, too.
        chains: in one run, where the layout depends on it.
    """

    build: Callable[[], tuple[lnz.Energy, Any, np.ndarray]]
    outcomes: int
    chains: int | None = None


def at_one(case: Case):
    return lambda: (case.energy, as_states(case), case.observed_probabilities(case.flat))


def tempered(case: Case):
    """At β = 0.6, on the path from a base."""
    base = base_of(case)
    law = normalised(tempered_weights(case, base, BETA))
    return lambda: (lnz.capabilities.tempered(case.energy, base, jnp.asarray(BETA)), as_states(case), law)


def lattice(shape, periodic, strength_shape):
    """An Ising lattice: couplings all alike, alike along an axis, or each its own."""

    def build():
        rng = np.random.default_rng(3)
        strength, fields = rng.normal(size=strength_shape), rng.normal(size=shape)
        full = np.broadcast_to(strength, (len(shape), *shape))
        s = states([-1, 1], fields.size).reshape(-1, *shape)
        weights = s.reshape(len(s), -1) @ fields.ravel()
        for axis, site, end in lattice_bonds(shape, periodic):
            weights = weights + full[(axis, *site)] * s[(slice(None), *site)] * s[(slice(None), *end)]
        energy = lnz.Ising.lattice(shape, strength, fields, periodic=periodic)
        return energy, jnp.asarray(s, energy.space.struct.dtype), normalised(weights)

    return build


def mixed_graph(own_sweep: bool):
    """Variables of 2, 3, 2 and 2 values, a shared table, a triple, and impossible configurations, next to which a site may have no value at all."""

    def build():
        rng = np.random.default_rng(2)
        pair, triple = rng.normal(size=(2, 3)), rng.normal(size=(2, 3, 2))
        pair[1, 2] = triple[0, 1, 1] = -np.inf
        graph = lnz.FactorGraph([2, 3, 2, 2], [(0, 1), (3, 1), (0, 1, 2)], [pair, triple], table_of=[0, 0, 1])
        x = np.stack(np.unravel_index(np.arange(24), (2, 3, 2, 2)), axis=1)
        law = normalised(pair[x[:, 0], x[:, 1]] + pair[x[:, 3], x[:, 1]] + triple[tuple(x.T[:3])])
        return graph if own_sweep else lnz.FunctionEnergy(graph, graph.space), jnp.asarray(x, jnp.int32), law

    return build


def field():
    """A random field on a path: it draws all nodes at every colour, and keeps those of the colour."""
    rng = np.random.default_rng(5)
    unary, tables = rng.normal(size=(3, 2)), 1.5 * rng.normal(size=(2, 2, 2))
    x = states(range(2), 3)
    weights = sum(unary[i, x[:, i]] for i in range(3)) + tables[0, x[:, 1], x[:, 0]] + tables[1, x[:, 1], x[:, 2]]
    structure = lnz.crf.Graph(3, [(1, 0), (1, 2)], groups=[1, 1])
    return lnz.RandomField(structure, unary, tables), jnp.asarray(x, jnp.int32), normalised(weights)


DEEP = named("deep boltzmann machine")
GIBBS = {
    "site after site, spins": Sweeps(tempered(named("function")), 2**5),
    "site after site, categories": Sweeps(tempered(function_of_categories()), 3**3),
    "site after site, labels": Sweeps(mixed_graph(False), 3**4),
    "dense spins": Sweeps(tempered(named("ising dense")), 2**5),
    "dense tables": Sweeps(tempered(named("potts dense tables")), 3**3),
    "classes of spins": Sweeps(tempered(named("ising sparse")), 2**6),
    "classes of tables": Sweeps(tempered(potts_sparse("potts sparse tables", True)), 3**6),
    "classes of categories": Sweeps(tempered(potts_lattice("potts square", (2, 2), 3, False)), 3**4),
    "factor graph": Sweeps(mixed_graph(True), 3**6),
    "checkerboard, own couplings": Sweeps(tempered(named("ising grid")), 2**6),
    "checkerboard, one coupling, odd width": Sweeps(lattice((2, 3), False, ()), 2**8),
    "checkerboard, couplings of axes, cylinder": Sweeps(lattice((3, 2), (False, True), (2, 1, 1)), 2**6),
    "checkerboard, chains first": Sweeps(lattice((2, 2), False, (2, 2, 2)), 2**4, chains=16),
    "rbm": Sweeps(at_one(named("rbm")), 2**7),
    "rbm on its path": Sweeps(tempered(named("rbm")), 2**7),
    "rbm of spins": Sweeps(at_one(named("rbm of spins")), 2**7),
    "rbm of categories": Sweeps(at_one(rbm("small rbm of categories", lnz.Categorical(2, k=3), 3)), 2**3 * 3**2),
    "deep machine": Sweeps(at_one(DEEP), 2**8),
    "deep machine on its path": Sweeps(tempered(DEEP), 2**8),
    "random field": Sweeps(field, 2 ** (2 * 3)),
}


@pytest.mark.parametrize("name", GIBBS)
def test_gibbs_sweeps(name):
    sweeps, gibbs = GIBBS[name], lnz.kernels.Gibbs()
    energy, states, law = sweeps.build()
    moves = [lambda key, v: gibbs.step(energy, key, v)[0]]
    if name != "random field":  # whose reversal is not known
        moves.append(lambda key, v: gibbs.reversal(energy, key, v))
    matrices = dealt_transitions(moves, states, sweeps.outcomes, sweeps.chains)
    assert_invariant(law, matrices[0])
    if len(matrices) == 2:
        flow, back = law[:, None] * matrices
        np.testing.assert_allclose(flow, back.T, rtol=0, atol=EXACT)
        one_class = "rbm" in name or "deep" in name
        assert np.allclose(flow, flow.T) == one_class, "two layers are in detailed balance, a sweep over classes is not"


@pytest.mark.parametrize("name", [name for name in GIBBS if "checkerboard" in name or name == "classes of spins"])
def test_packed_energies(name):
    energy, states, law = GIBBS[name].build()
    sweep = lnz.kernels.Gibbs().sweep(energy)
    found = np.asarray(sweep.energy(sweep.pack(states)))
    np.testing.assert_allclose(found - found[0], np.log(law[0]) - np.log(law), atol=1e-9)


def ising_square():
    return at_one(ising_lattice("ising square", (2, 2), False))()


def potts_triangle():
    case = potts_lattice("potts triangle", (3,), 3, True)
    flat = np.append(np.abs(case.flat[:3]), case.flat[3:])  # couplings of at least 0
    return case.at(jnp.asarray(flat)), as_states(case), case.observed_probabilities(flat)


@pytest.mark.parametrize(("build", "outcomes"), [(ising_square, 2 ** (4 + 4)), (potts_triangle, 2**3 * 3**3)])
def test_swendsen_wang_moves(build, outcomes):
    energy, states, law = build()
    move = lambda key, v: lnz.kernels.SwendsenWang().step(energy, key, v)[0]  # noqa: E731
    (matrix,) = dealt_transitions([move], states, outcomes)
    assert_invariant(law, matrix)
    flow = law[:, None] * matrix
    np.testing.assert_allclose(flow, flow.T, rtol=0, atol=EXACT)


def test_the_categories_of_a_uniform_number(monkeypatch):
    """The draw that sweeps over categories take: value v where the number lies between the chances of v values and of v + 1."""
    potentials = np.random.default_rng(0).normal(size=(5, 40)) * 3
    potentials[1, :10] = potentials[0, 5:15] = potentials[4, 12:20] = -np.inf
    ends = np.cumsum(np.exp(potentials) / np.exp(potentials).sum(axis=0), axis=0)
    draw = jax.jit(lambda u: given(u))

    def given(u):
        monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: u)
        return units.sample_first_axis(jax.random.key(0), jnp.asarray(potentials))

    for v in range(5):
        low, high = (ends[v - 1] if v else np.zeros(40)), ends[v]
        for u in (low + 1e-12, high - 1e-12):
            np.testing.assert_array_equal(np.asarray(draw(u))[high - low > 1e-9], v)
