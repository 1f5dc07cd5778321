"""Saved energies: every model of the library comes back as it was, and nothing else is taken for one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz._core.checkpoint import CheckpointError, load_arrays, save_tree
from lnz._models.independent import HalfLogistic, LogisticReal
from lnz.io import WriteError
from lnz.io import _saved as saved

KEY = jax.random.key(71)


def couplings(n):
    j = np.random.default_rng(0).normal(size=(n, n))
    return np.triu(j, 1) + np.triu(j, 1).T


def tables(n, q):
    j = np.random.default_rng(0).normal(size=(n, q, n, q))
    j = j + j.transpose(2, 3, 0, 1)
    j[np.arange(n), :, np.arange(n), :] = 0
    return j


EDGES = [[0, 1], [1, 2], [0, 3]]
FIELDS = np.linspace(-1, 1, 4)

ENERGIES = {
    "rbm": lambda: lnz.RBM(visible=4, hidden=3, key=KEY),
    "rbm of spins, float64": lambda: lnz.RBM(visible=lnz.Spin(4), hidden=3, key=KEY, dtype=jnp.float64),
    "rbm of categories": lambda: lnz.RBM(visible=lnz.Categorical(2, k=3), hidden=3, key=KEY),
    "deep boltzmann machine": lambda: lnz.DeepBoltzmannMachine(4, (3, 2, 5), key=KEY),
    "gaussian rbm": lambda: lnz.GaussianRBM(visible=2, hidden=3, key=KEY),
    "random field on a graph": lambda: lnz.RandomField(
        lnz.crf.Graph(3, [(0, 1), (2, 1)], [(2, 0, 1)], groups=[1, 1]),
        np.ones((3, 2)),
        FIELDS.reshape(1, 2, 2).repeat(2, 0),
        factors=[np.ones((2,) * 3)],
    ),
    "random field on a grid, masked": lambda: lnz.RandomField(
        lnz.crf.Grid((1, 4), [(0, 1), (0, -2)]), np.ones((1, 4, 2)), mask=np.array([[True, False, True, True]])
    ),
    "random field on a chain": lambda: lnz.RandomField(lnz.crf.Chain(3), np.ones((3, 2)), FIELDS.reshape(2, 2)),
    "random field on a tree": lambda: lnz.RandomField(lnz.crf.Tree([-1, 0, 0]), np.ones((3, 2)), FIELDS.reshape(2, 2)),
    "ising": lambda: lnz.Ising(couplings(4), FIELDS),
    "sparse ising": lambda: lnz.Ising.sparse(EDGES, [1.0, 2.0, -0.5], FIELDS, n=np.int64(4)),
    "lattice": lambda: lnz.Ising.lattice((2, 3), 0.3, periodic=False),
    "torus": lambda: lnz.Ising.lattice((3, 4), np.random.default_rng(0).normal(size=(2, 3, 4)), 0.1, periodic=True),
    "potts": lambda: lnz.Potts(couplings(3), q=3),
    "potts tables": lambda: lnz.Potts(tables(3, 2), q=2),
    "sparse potts tables": lambda: lnz.Potts.sparse(EDGES, np.arange(12.0).reshape(3, 2, 2), n=4, q=2),
    "potts lattice": lambda: lnz.Potts.lattice((2, 2), 0.2, q=3, periodic=False),
    "factor graph": lambda: lnz.FactorGraph([2, 3], [(1, 0), (1,)], [np.ones((3, 2)), np.array([0.1, -np.inf, 1])]),
    "chain": lambda: lnz.LinearChain(
        np.ones((4, 3)), np.array([[1, 2, -np.inf]] * 3), 3, start=np.arange(3.0), mask=np.array([1, 0, 1, 1], bool), holes="cut"
    ),
    "semi-Markov chain": lambda: lnz.SemiMarkovChain(np.arange(24.0).reshape(4, 3, 2), np.eye(2), 3, end=np.ones(2)),
    "its own log Z a parameter": lambda: lnz.SelfNormalised(lnz.Gaussian([1.0], [2.0]), log_z=0.5),
    "uniform on labels": lambda: lnz.Uniform(lnz.crf.MixedCategorical([2, 3])),
    "independent": lambda: lnz.Independent(FIELDS, lnz.Binary(4)),
    "independent categories": lambda: lnz.Independent(np.ones((2, 3)), lnz.Categorical(2, k=np.int64(3))),
    "independent spins on a grid": lambda: lnz.Independent(np.ones((2, 2)), lnz.Spin((2, 2))),
    "gaussian": lambda: lnz.Gaussian([1.0, 2.0], [[2.0, 0.5], [0.5, 1.0]]),
    "logistic": lambda: LogisticReal(lnz.Real(2), 1.5),
    "half logistic": lambda: HalfLogistic(lnz.Box([0.0, -np.inf], [np.inf, 1.0]), 1.5),
    "uniform on a box": lambda: lnz.Uniform(lnz.Box([0.0, -1.0], 2.0)),
    "uniform on a product": lambda: lnz.Uniform(lnz.Product(lnz.Binary(2), lnz.Product(lnz.Spin(1), lnz.Categorical((1, 2), k=3)))),
    "mixture": lambda: lnz.Mixture([0.1, 0.9], [lnz.Gaussian([0.0], [1.0]), lnz.Gaussian([3.0], [[2.0]])]),
    "mixture of mixtures": lambda: lnz.Mixture(
        [0.1, 0.9],
        [
            lnz.Mixture([0.0], [lnz.Ising(couplings(4))]),
            lnz.Mixture([0.5, -0.5], [lnz.Ising.sparse(EDGES, 0.3, n=4), lnz.Independent(FIELDS, lnz.Spin(4))]),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENERGIES)
def test_round_trip(name, tmp_path):
    energy = ENERGIES[name]()
    lnz.save(tmp_path / "model", energy)
    back = lnz.load(tmp_path / "model")
    assert type(back) is type(energy)
    assert jax.tree.structure(back) == jax.tree.structure(energy), "static fields: spaces, edges, shapes"
    for one, two in zip(jax.tree.leaves(back), jax.tree.leaves(energy), strict=True):
        assert isinstance(one, jax.Array)
        assert one.dtype == two.dtype
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()
    assert back.space == energy.space
    assert hash(back.space) == hash(energy.space)
    x = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), energy.space.struct)
    assert back(x) == energy(x)
    lnz.save(tmp_path / "again", back)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()


def test_every_class_has_a_case():
    def classes(value):
        found = {type(value).__name__}
        if isinstance(value, tuple):
            return set().union(*map(classes, value))
        if dataclasses.is_dataclass(value):
            found |= set().union(*(classes(getattr(value, f.name)) for f in dataclasses.fields(value)))
        return found

    seen = set().union(*(classes(make()) for make in ENERGIES.values()))
    assert set(saved._CLASSES) | set(saved._SPACES) <= seen


def test_a_loaded_model_goes_on(tmp_path):
    energy = lnz.RBM(visible=4, hidden=3, key=KEY)
    lnz.save(tmp_path / "model", energy)
    back = lnz.load(tmp_path / "model")
    assert lnz.log_partition(back).value == lnz.log_partition(energy).value
    data = np.random.default_rng(0).integers(0, 2, (8, 4))
    fitted = lnz.fit(back, data, epochs=1, key=KEY)
    assert jax.tree.structure(fitted.energy) == jax.tree.structure(energy)


class TestRefusals:
    def test_models_of_the_users_own(self, tmp_path):
        class Own(lnz.Ising):
            pass

        class RBM(lnz.Energy):  # a name of the library's, and not its class
            @property
            def space(self):
                return lnz.Binary(1)

            def __call__(self, x):
                return jnp.sum(x)

        class Binary(lnz.Binary):
            pass

        function = lnz.FunctionEnergy(lambda x: jnp.sum(x), lnz.Binary(2))
        for energy, kind in (
            (function, "FunctionEnergy"),
            (Own(couplings(4)), "Own"),
            (RBM(), "RBM"),
            (lnz.Mixture([0.0], [function]), "FunctionEnergy"),
            (lnz.Uniform(Binary(2)), "Binary"),
        ):
            with pytest.raises(TypeError, match=f"{kind} cannot be saved.*Save its arrays"):
                lnz.save(tmp_path / "model", energy)
        for other in (3, {"a": jnp.ones(2)}, lnz.Binary(2)):
            with pytest.raises(TypeError, match="only an energy"):
                lnz.save(tmp_path / "model", other)
        assert not list(tmp_path.iterdir())

    def test_nan(self, tmp_path):
        energy = jax.tree.map(
            lambda leaf: leaf * jnp.asarray(np.nan, leaf.dtype), lnz.RBM(visible=4, hidden=3, key=KEY)
        )
        with pytest.raises(ValueError, match=r"NaN, but \['energy\.hidden_bias'\]"):
            lnz.save(tmp_path / "model", energy)

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(WriteError, match="folder does not exist"):
            lnz.save(tmp_path / "no" / "model", lnz.Ising(couplings(4)))

    def test_damage(self, tmp_path):
        path = tmp_path / "model"
        lnz.save(path, lnz.Ising.lattice((3, 4), 0.1, periodic=True))
        whole = path.read_bytes()
        for length in range(0, len(whole), 3):
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError):
                lnz.load(path)
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            path.write_bytes(damaged)
            try:
                back = lnz.load(path)
            except CheckpointError:
                continue
            assert back.couplings.shape == (3, 4)
            assert back.couplings.periodic is True
            assert float(back.couplings.strength) == 0.1
        assert b'\\"periodic\\": {\\"value\\": true}' in whole
        path.write_bytes(whole.replace(b'{\\"value\\": 3}', b'{\\"value\\": 4}'))
        with pytest.raises(CheckpointError, match="damaged"):
            lnz.load(path)

    def test_files_that_hold_no_energy(self, tmp_path):
        path = tmp_path / "model"
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            lnz.load(path)
        path.write_bytes(b"hello")
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            lnz.load(path)
        save_tree(path, {"a": jnp.ones(2)})
        with pytest.raises(CheckpointError, match="holds no saved energy"):
            lnz.load(path)

    def test_a_class_or_a_field_of_a_newer_version(self, tmp_path):
        path = tmp_path / "model"
        lnz.save(path, lnz.Independent(FIELDS, lnz.Binary(4)))
        arrays, about = load_arrays(path)
        arrays = {"energy.potentials": arrays["['energy.potentials']"]}
        for old, new in (('"Independent"', '"Tensor"'), ('"potentials"', '"field"'), ('"Binary"', '"Ring"')):
            save_tree(path, arrays, json.loads(json.dumps(about).replace(old, new)))
            with pytest.raises(CheckpointError, match=r"does not know\. Use a newer one"):
                lnz.load(path)
