"""A base of kept bonds, chains that stay in a packed layout, and sweeps with their reversal: against lists of all states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz.kernels._kernels import Gibbs
from lnz.routes._annealing.annealed import annealed
from lnz.routes._annealing.path import Path, move, reversible, walk
from lnz.routes._annealing.schedule import fixed_ladder

RNG = np.random.default_rng(3)
COUPLINGS, FIELDS = 1.2 * RNG.normal(size=(2, 4, 4)), 0.5 * RNG.normal(size=(4, 4))
LATTICE = lnz.Ising.lattice((4, 4), COUPLINGS, FIELDS, periodic=(False, True))  # two colours, frustrated
EDGES = np.array([[0, 1], [1, 2], [0, 2], [2, 3], [3, 4], [1, 4]])
SPARSE = lnz.Ising.sparse(EDGES, 0.8 * RNG.normal(size=6), 0.3 * RNG.normal(size=5), n=5)  # three colours
DENSE = lnz.Ising(np.array([[0, 0.9, -0.4], [0.9, 0, 0.6], [-0.4, 0.6, 0]]), np.array([0.3, -0.2, 0.1]))
TABLE = lnz.FunctionEnergy(lambda s: -0.8 * s[0] * s[1] - 0.3 * s[1] * s[2] + 0.4 * s[0], lnz.Spin(3))


def states(energy):
    space = energy.space
    k, low, gap = (space.k, 0, 1) if isinstance(space, lnz.Categorical) else (2, -1, 2)
    size = int(np.prod(space.shape))
    digits = np.arange(k**size)[:, None] // k ** np.arange(size) % k
    return (low + gap * digits).reshape(-1, *space.shape).astype(space.struct.dtype)


def exact_states(energy, n):
    listed = states(energy)
    p = np.asarray(jax.nn.softmax(-jax.vmap(energy)(jnp.asarray(listed))), np.float64)
    return jnp.asarray(listed[np.random.default_rng(6).choice(len(p), n, p=p / p.sum())])


def log_z(energy):
    return float(jax.nn.logsumexp(-jax.vmap(energy)(jnp.asarray(states(energy)))))


@pytest.mark.parametrize(("energy", "keep"), [(LATTICE, np.arange(28) >= 12), (DENSE, None)], ids=["lattice", "dense"])
def test_a_base_of_kept_bonds_is_exact_and_part_of_the_model(energy, keep):
    base = lnz.routes.subgraph_base(energy, keep)
    listed = jnp.asarray(states(energy))
    assert abs(float(base.log_normaliser()) - log_z(base.model)) < 1e-4
    kept, removed = base.model.couplings.pairs()[1], energy.couplings.pairs()[1]
    assert ((kept == removed) | (kept == 0)).all()
    assert 0 < int((kept != 0).sum()) < len(removed)
    assert keep is None or ((kept != 0) == keep).all()
    half = lnz.capabilities.tempered(energy, base.model, jnp.asarray(0.5))
    mixed = 0.5 * (jax.vmap(energy)(listed) + jax.vmap(base.model)(listed))
    np.testing.assert_allclose(jax.vmap(half)(listed), mixed, atol=1e-4)
    drawn = base.sample(jax.random.key(0), 4000)
    assert drawn.shape == (4000, *energy.space.shape)
    assert drawn.dtype == energy.space.struct.dtype
    energies = np.asarray(jax.vmap(base.model)(listed), np.float64)
    p = np.exp(-energies - np.logaddexp.reduce(-energies))
    seen = np.asarray(jax.vmap(base.model)(drawn))
    mean, sd = (p * energies).sum(), np.sqrt((p * energies**2).sum() - (p * energies).sum() ** 2)
    assert abs(seen.mean() - mean) < 4.5 * sd / np.sqrt(4000)


def test_what_is_kept_by_default():
    """Rows in fours of a lattice, with the bonds across the boundary of the last axis alone; the strongest spanning forest of a graph."""
    torus = lnz.Ising.lattice((8, 6), 0.3, periodic=True)
    first, second = (np.stack(np.unravel_index(e, (8, 6))) for e in torus.couplings.pairs()[0].T)
    kept = np.asarray(lnz.routes.subgraph_base(torus).model.couplings.pairs()[1]) != 0
    along, across = first[0] == second[0], ((first[0] == 3) | (first[0] == 7)) & (first[0] != second[0])
    np.testing.assert_array_equal(kept, along | ~across)
    strength = np.abs(np.asarray(SPARSE.couplings.strength))
    tree = np.asarray(lnz.routes.subgraph_base(SPARSE).model.couplings.strength) != 0
    assert tree.sum() == 4  # every cycle lacks its weakest bond
    for cycle in ([0, 1, 2], [0, 5, 4, 3, 2], [1, 5, 4, 3]):
        assert not tree[cycle].all()
        assert not tree[cycle][strength[cycle].argmin()]


def test_annealing_from_kept_bonds_is_unbiased_and_spreads_less():
    mild = jax.tree.map(lambda x: 0.5 * x, LATTICE)
    truth, base = log_z(mild), lnz.routes.subgraph_base(mild, np.arange(28) >= 4)  # all but those of the first two rows
    spread = {}
    for name, route in {
        "kept": lnz.routes.AnnealedImportanceSampling.from_base(base, temperatures=8, chains=2000),
        "free": lnz.routes.AnnealedImportanceSampling(temperatures=8, chains=2000),
    }.items():
        log_w = np.asarray(jax.jit(route.anneal)(mild, jax.random.key(4))[0], np.float64) - truth
        w = np.exp(log_w)
        assert abs(w.mean() - 1) < 4.5 * w.std() / np.sqrt(2000)
        spread[name] = log_w.std()
    assert spread["kept"] < 0.8 * spread["free"]


def test_a_base_that_cannot_be_summed_is_refused():
    with pytest.raises(ValueError, match="one boolean per bond"):
        lnz.routes.subgraph_base(SPARSE, np.ones(5, bool))
    with pytest.raises(ValueError, match="Keep fewer"):
        lnz.routes.subgraph_base(lnz.Ising.lattice((40, 40), 0.4, periodic=True), np.ones(3200, bool))
    with pytest.raises(ValueError, match="needs an Ising or Potts model"):
        lnz.routes.subgraph_base(lnz.RBM(visible=3, hidden=2, key=jax.random.key(0)))
    with pytest.raises(ValueError, match="cannot be traced"):
        jax.jit(lambda e: lnz.routes.subgraph_base(e).log_normaliser())(SPARSE)


@pytest.mark.parametrize("chains", [5, 40])
@pytest.mark.parametrize(
    ("shape", "strength", "periodic"),
    [((4, 4), COUPLINGS, (False, True)), ((3, 5), 0.6, False), ((2, 3, 4), np.full((3, 1, 1, 1), 0.3), False)],
    ids=["all", "one", "axes"],
)
def test_packed_chains_know_their_energies(shape, strength, periodic, chains):
    """In both layouts of the lattice, with many chains and with few, and where a row has an odd length."""
    fields = np.linspace(-0.5, 0.9, int(np.prod(shape))).reshape(shape)
    energy = lnz.Ising.lattice(shape, strength, fields, periodic=periodic)
    v = jnp.asarray(np.random.default_rng(1).choice([-1, 1], (chains, *shape)), jnp.int8)
    sweep = energy.gibbs_sweep()
    again, packed, listed = jax.jit(
        lambda v: (sweep.unpack(sweep.pack(v)), sweep.energy(sweep.pack(v)), jax.vmap(energy)(v))
    )(v)
    np.testing.assert_array_equal(again, v)
    np.testing.assert_allclose(packed, listed, atol=1e-4)


@pytest.mark.parametrize("energy", [LATTICE, SPARSE, DENSE, TABLE], ids=["lattice", "sparse", "dense", "table"])
def test_every_sweep_has_its_reversal(energy):
    """Detailed balance with the reversal: Σ p(x) P(x → y) f(x) g(y) = Σ p(y) P_back(y → x) f(x) g(y) for any f and g."""
    n = 20_000
    assert reversible(Gibbs(), Path(energy))
    x, zero = exact_states(energy, n), jnp.zeros((), jnp.result_type(float))
    keys = jax.random.split(jax.random.key(8))
    ends = jax.jit(
        lambda x: [move(Gibbs(), energy, keys[i], x, zero, reverse=back)[0] for i, back in enumerate((False, True))]
    )(x)
    x, forth, back = (np.asarray(v, np.float64).reshape(n, -1) for v in (x, *ends))
    size = x.shape[1]
    for i in (0, size // 2, size - 1):
        for j in (0, size // 2, size - 1):
            a, b = x[:, i] * forth[:, j], back[:, i] * x[:, j]
            assert abs(a.mean() - b.mean()) < 4.5 * np.hypot(a.std(), b.std()) / np.sqrt(n), (i, j)


def test_works_along_colour_classes_have_crooks_symmetry():
    """E_F[f(a) e^(a - log Z)] = E_R[f(-b)]: for reverse chains that go through the classes the other way round."""
    model = jax.tree.map(lambda x: 0.5 * x, LATTICE)  # so mild that no few weights carry the means
    truth = log_z(model)
    path, ladder = Path(model), fixed_ladder(np.array([0.0, 0.45, 1.0]))
    n = 20_000
    end = exact_states(model, n)

    @jax.jit
    def works(key):
        keys = jax.random.split(key, 4)
        forward = annealed(path, Gibbs(), keys[1], path.start(keys[2], n), ladder, sweeps=1)
        reverse = annealed(path, Gibbs(), keys[3], end, ladder.reversed(), sweeps=1, reverse=True)
        return forward.log_weights + path.log_z0(), reverse.log_weights - path.log_z0()

    forward, reverse = (np.asarray(x, np.float64) for x in works(jax.random.key(2)))
    edges = np.quantile(-reverse, [0.1, 0.3, 0.6, 0.9])
    for low, high in zip([-np.inf, *edges], [*edges, np.inf], strict=True):
        left = np.where((forward >= low) & (forward < high), np.exp(forward - truth), 0)
        right = ((-reverse >= low) & (-reverse < high)).astype(float)
        assert abs(left.mean() - right.mean()) < 4.5 * np.hypot(left.std(), right.std()) / np.sqrt(n)


@pytest.mark.parametrize("reverse", [False, True], ids=["forth", "back"])
def test_a_walk_in_the_layout_is_the_walk_outside_it(reverse):
    """The same random numbers, gains and states, packed or not."""
    path, key, beta = Path(LATTICE), jax.random.key(1), jnp.asarray(0.7)
    packed = walk(path, Gibbs(), sweeps=2, reverse=reverse)

    @jax.jit
    def both(v):
        x = packed.pack(v)
        inside = packed.unpack(packed.move(key, beta, x, beta * 0)[0]), packed.gain(x, beta, 1.0)
        return inside, (
            move(Gibbs(), path.at(beta), key, v, beta * 0, sweeps=2, reverse=reverse)[0],
            path.gain(v, beta, 1.0),
        )

    inside, outside = both(jnp.asarray(np.random.default_rng(0).choice([-1, 1], (40, 4, 4)), jnp.int8))
    np.testing.assert_array_equal(inside[0], outside[0])
    np.testing.assert_allclose(inside[1], outside[1], atol=1e-4)


def test_a_reversal_begins_where_the_sweep_ends():
    """Bonds so strong that a class copies its neighbours: a sweep keeps what the second class had, its reversal what the first had."""
    board = jnp.asarray(np.where(np.indices((4, 4)).sum(axis=0) % 2 == 0, -1, 1)[None], jnp.int8)
    sweep = lnz.Ising.lattice((4, 4), 20.0, 0.0, periodic=True).gibbs_sweep()
    for way, kept in ((sweep.step, 1), (sweep.back, -1)):
        np.testing.assert_array_equal(sweep.unpack(way(jax.random.key(0), sweep.pack(board))), np.full((1, 4, 4), kept))
