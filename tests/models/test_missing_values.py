"""What holds missing values, or is no array, is refused in words wherever data, labels or parameters are given; nothing is read as a number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import lnz
from lnz.io._checking import check
from lnz.learning._likelihood import free_energies

KEY = jax.random.key(0)
ROWS = np.tile([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], (5, 1))
RBM = lnz.RBM(visible=3, hidden=2, key=KEY)
CHAIN = lnz.LinearChain(np.zeros((3, 2)), np.zeros((2, 2)))
FIELD = lnz.RandomField(lnz.crf.Grid((1, 3)), np.zeros((1, 3, 2)), np.zeros((2, 2)))
GRAPH = lnz.FactorGraph([2] * 3, [(0, 1), (1, 2)], [np.zeros((2, 2))] * 2)
GAUSSIAN = lnz.Gaussian([0.0] * 3, [1.0] * 3)


class NAType:
    """Stands for the missing value of pandas, which is of a class with this name."""


def objects(x):
    x = np.asarray(x).astype(object)
    x.flat[1] = NAType()
    return x


def masked(x):
    x = np.asarray(x)
    return np.ma.masked_array(x, np.arange(x.size).reshape(x.shape) == 1)


HOLED = {
    "masked": (masked, r"1 of [\d,]+ entries are masked. Nothing is imputed: fill them in, or leave their rows out"),
    "rows": (lambda x: [masked(x), masked(x)] if np.ndim(x) == 1 else [masked(row) for row in x], "entries are masked"),
    "missing": (objects, r"1 of [\d,]+ entries are missing \(NA or None\). Nothing is imputed"),
    "sparse": (
        lambda x: scipy.sparse.csr_matrix(np.atleast_2d(x)),
        r"a sparse csr_matrix of shape .*Call .toarray\(\)",
    ),
}
PLACES = {
    "fit": (lambda x: lnz.fit(RBM, x, epochs=1, key=KEY), ROWS),
    "fit's validation": (lambda x: lnz.fit(RBM, ROWS, validation=x, epochs=1, key=KEY), ROWS),
    "fit's weights": (lambda x: lnz.fit(RBM, ROWS, weights=x, epochs=1, key=KEY), np.ones(10)),
    "a trainer": (lambda x: (t := lnz.Trainer()).step(t.init(RBM, KEY, batch_size=10), x), ROWS),
    "a likelihood": (lambda x: lnz.log_likelihood(RBM, x), ROWS),
    "a space": (lambda x: lnz.Binary(3).validate(x, batch=True), ROWS),
    "real space": (lambda x: lnz.Real(3).validate(x, batch=True), ROWS),
    "RBM.from_data": (lambda x: lnz.RBM.from_data(x, 2, key=KEY), ROWS),
    "DeepBoltzmannMachine.from_data": (lambda x: lnz.DeepBoltzmannMachine.from_data(x, [2, 2], key=KEY), ROWS),
    "Independent.from_data": (lambda x: lnz.Independent.from_data(x, lnz.Binary(3)), ROWS),
    "fitted_base": (lambda x: lnz.routes.fitted_base(lnz.Real(3), x), ROWS),
    "fitted_base of an energy": (lambda x: lnz.routes.fitted_base(RBM, x), ROWS),
    "free energies": (lambda x: free_energies(RBM, x), ROWS),
    "an energy": (lambda x: lnz.Independent(np.zeros(3), lnz.Binary(3))(x), ROWS[0]),
    "labels of a chain": (lambda x: lnz.crf.log_probability(CHAIN, x), np.asarray([0, 1, 1])),
    "labels of a field": (lambda x: lnz.crf.log_probability(FIELD, x), np.asarray([[0, 1, 1]])),
    "partial labels": (lambda x: lnz.crf.partial_labels(x, 2), np.asarray([0, 1, -1])),
    "evidence": (lambda x: GRAPH.clamped(x), np.asarray([0, -1, 1])),
    "log-potentials": (lambda x: lnz.LinearChain(x, np.zeros((2, 2))), np.zeros((3, 2))),
    "parameters": (lambda x: lnz.Gaussian(x, [1.0] * 3), np.zeros(3)),
    "checked data": (lambda x: check(x, "binary"), ROWS),
    "pixels": (lambda x: lnz.apps.confusion(x, np.zeros((2, 2), int), 2), np.zeros((2, 2), int)),
}


@pytest.mark.parametrize("kind", HOLED)
@pytest.mark.parametrize("place", PLACES)
def test_missing_values_and_sparse_matrices_are_refused(place, kind):
    run, whole = PLACES[place]
    holed, message = HOLED[kind]
    with pytest.raises(ValueError, match=message):
        run(holed(whole))


def test_whole_arrays_are_what_they_were():
    none_masked = np.ma.masked_array(ROWS, np.zeros(ROWS.shape, bool))
    for rows in (ROWS.tolist(), none_masked, [np.ma.masked_array(row) for row in ROWS], jnp.asarray(ROWS)):
        found = lnz.Independent.from_data(rows, lnz.Binary(3)).potentials
        np.testing.assert_array_equal(found, lnz.Independent.from_data(ROWS, lnz.Binary(3)).potentials)


@pytest.mark.parametrize(
    "model",
    [RBM, lnz.GaussianRBM(3, 2, key=KEY), lnz.RBM(visible=lnz.Spin(3), hidden=2, key=KEY)],
    ids=lambda model: type(model).__name__,
)
def test_the_energy_of_both_layers_of_one_alone(model):
    for v in (jnp.ones(3), ROWS[0], [1.0, 0.0, 1.0], (jnp.ones(3),)):
        with pytest.raises(
            ValueError, match=r"of a state \(v, h\) of both layers. Of v alone use \w+.free_energy\(v\)"
        ):
            model(v)
    assert np.isfinite(model((jnp.ones(3), jnp.ones(2))))
    assert np.isfinite(model.free_energy(jnp.ones(3)))


def test_marginals_of_what_is_impossible_are_refused():
    never = np.full((2, 2), -np.inf)
    for tables in ([never, never], [np.zeros((2, 2)), never]):
        with pytest.raises(ValueError, match="Z = 0"):
            lnz.marginals(lnz.FactorGraph([2] * 3, [(0, 1), (1, 2)], tables))
    with pytest.raises(ValueError, match="Z = 0"):
        lnz.marginals(lnz.FactorGraph([2], [(0,)], [np.full(2, -np.inf)]), route=lnz.routes.Elimination())
    assert len(lnz.marginals(GRAPH)) == 3
