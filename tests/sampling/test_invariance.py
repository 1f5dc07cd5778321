"""Every kernel leaves the law of every energy invariant: one sweep of exact samples is again a set of exact samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import lnz
from contracts.energies import DISCRETE, named
from contracts.routes import quick_jit
from lnz.sampling.kernels import langevin_step

N = 10_000
LEVEL = 1e-5  # of a false alarm, for each of some fifty tests
SWEPT = [case for case in DISCRETE if lnz.Gibbs().refusal(case.energy) is None]
TEMPERED = [
    "rbm",
    "rbm_of_categories",
    "ising_dense",
    "ising_odd_torus",
    "potts_dense_tables",
    "function",
    "mixture_of_spins",
]
every_case = pytest.mark.parametrize("case", SWEPT, ids=lambda case: case.name.replace(" ", "_"))


def numbers(space, v):
    """The number of each state in lexicographic order."""
    digits = np.asarray(v).reshape(len(v), -1)
    digits = ((digits + 1) / 2 if isinstance(space, lnz.Spin) else digits).astype(int)
    return digits @ space.categories ** np.arange(digits.shape[1])[::-1]


def p_value(space, v, law):
    counts = np.bincount(numbers(space, v), minlength=len(law))
    likely = law * N > 5
    if likely.sum() == len(law):
        return stats.chisquare(counts, law * N).pvalue
    observed = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(law[likely] * N, law[~likely].sum() * N)
    return stats.chisquare(observed[expected > 0], expected[expected > 0]).pvalue


def swept(energy, law, key, *, sweeps=1, kernel_of=None):
    """Exact samples of `law` after sweeps of the kernel, and the space they live on."""
    space = energy.observed
    start, move = jax.random.split(key)
    index = jax.random.choice(start, len(law), (N,), p=jnp.asarray(law))
    v = space.decode(index)
    step = quick_jit(lambda e, k, v: lnz.run_chains(e, lnz.Gibbs(), k, v, sweeps))
    return np.asarray(step(energy if kernel_of is None else kernel_of, move, v))


@every_case
def test_a_gibbs_sweep_keeps_the_law(case, key):
    law = case.observed_probabilities(case.flat)
    v = swept(case.energy, law, key)
    assert p_value(case.energy.observed, v, law) > LEVEL


@pytest.mark.parametrize("name", ["rbm", "ising odd torus", "potts dense tables", "function"])
def test_the_test_sees_a_kernel_at_another_temperature(name, key):
    case = named(name)
    law = case.observed_probabilities(case.flat)
    wrong = jax.tree.map(lambda leaf: 1.3 * leaf, case.energy)
    v = swept(case.energy, law, key, sweeps=2, kernel_of=wrong)
    assert p_value(case.energy.observed, v, law) < LEVEL


@pytest.mark.parametrize("name", TEMPERED)
def test_a_tempered_energy_keeps_its_own_law(name, key):
    """At β = 0.37 between a base of its own means and the energy: the path is geometric, and its moves know it."""
    case = named(name.replace("_", " "))
    base = case.energy.base()
    shifted = jax.tree.map(lambda leaf: leaf + jnp.linspace(-0.5, 0.8, leaf.size).reshape(leaf.shape), base)
    warm = case.energy.tempered(shifted, jnp.asarray(0.37))
    states = case.energy.observed.decode(jnp.arange(case.energy.observed.count, dtype=jnp.uint32))
    law = np.asarray(jax.nn.softmax(-jax.vmap(warm.free_energy)(states)))
    assert p_value(warm.observed, swept(warm, law, key), law) > LEVEL


@pytest.mark.parametrize(
    "name", ["rbm", "rbm of spins", "gaussian rbm", "ising dense", "potts grid", "function", "double well"]
)
def test_the_path_ends_at_the_base_and_at_the_energy(name, key):
    case = named(name)
    energy, base = case.energy, case.energy.base()
    v = base.sample(key, 50)
    constant = jax.vmap(base)(v) - jax.vmap(energy.tempered(base, jnp.asarray(0.0)).free_energy)(v)
    np.testing.assert_allclose(constant, energy.tempered(base, jnp.asarray(0.0)).log_latent_volume, atol=1e-9)
    end = jax.vmap(energy.tempered(base, jnp.asarray(1.0)).free_energy)(v)
    np.testing.assert_allclose(end, jax.vmap(energy.free_energy)(v), atol=1e-9)


def test_gibbs_sweeps_of_a_gaussian_rbm_reach_its_moments(key):
    energy = named("gaussian rbm").energy
    start = 3 * jax.random.normal(key, (N, energy.observed.shape[0]))
    v = np.asarray(quick_jit(lambda k, v: lnz.run_chains(energy, lnz.Gibbs(), k, v, 40))(key, start))
    hidden = named("gaussian rbm")
    exact = lnz.ExactPhase(lnz.Enumeration()).chosen(energy).mean_gradient(energy, None)
    # E[∂F/∂b] = 0 at the model's own law gives E[v] = b + W E[h]; E[h] is the mean gradient of the hidden bias.
    mean = np.asarray(energy.visible_bias + energy.weights @ exact.hidden_bias)
    error = v.std(axis=0) / np.sqrt(N)
    assert (np.abs(v.mean(axis=0) - mean) < 6 * error).all(), hidden.name


def test_langevin_moves_keep_a_double_well(key):
    """Exact samples by inversion on a fine grid, then moves large enough that many are rejected."""
    energy = lnz.FunctionEnergy(lambda x: (0.5 * (x[0] ** 2 - 2) ** 2 + 0.6 * x[0]) * 1.3, lnz.Real(1))
    grid = np.linspace(-4, 4, 40_001)
    density = np.exp(-np.asarray(jax.vmap(energy)(jnp.asarray(grid)[:, None])))
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    cumulative /= cumulative[-1]
    uniform, move = jax.random.split(key)
    v = jnp.asarray(np.interp(jax.random.uniform(uniform, (N,)), cumulative, grid))[:, None]
    moves = jax.jit(lambda v: langevin_step(energy, move, v, jnp.asarray(0.35)))
    moved, info = moves(v)
    assert 0.3 < float(info["acceptance"]) < 0.95
    after = np.interp(np.asarray(moved)[:, 0], grid, cumulative)
    assert stats.kstest(after, "uniform").pvalue > LEVEL
    unadjusted = v - 0.35 * jax.vmap(jax.grad(energy))(v) + np.sqrt(0.7) * jax.random.normal(move, v.shape)
    wrong = np.interp(np.asarray(unadjusted)[:, 0], grid, cumulative)
    assert stats.kstest(wrong, "uniform").pvalue < LEVEL, "the test does not see a missing acceptance step"


def test_langevin_moves_stay_in_a_box(key):
    energy = lnz.FunctionEnergy(lambda x: -2.0 * x[0], lnz.Box([0.0], [1.0]))
    v = lnz.run_chains(energy, lnz.Langevin(step_size=0.05), key, jnp.full((4000, 1), 0.5), 60)
    assert (v >= 0).all()
    assert (v <= 1).all()
    mean = 1 / (1 - np.exp(-2)) - 0.5
    assert abs(float(v.mean()) - mean) < 6 * float(v.std()) / np.sqrt(4000)


def test_kernels_refuse_what_they_cannot_serve():
    from lnz.sampling.kernels import default_kernel

    mixed = named("product of spaces").energy
    with pytest.raises(ValueError, match="no kernel serves this energy: Gibbs sweeps need .*; Langevin moves need"):
        default_kernel(mixed)
    assert "step size must be above 0" in str(lnz.Langevin(step_size=0.0).refusal(named("double well").energy))
    assert "Langevin moves need a Real space" in str(lnz.Langevin().refusal(named("rbm").energy))
