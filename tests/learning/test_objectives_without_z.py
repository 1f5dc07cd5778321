"""Objectives without Z: their values against the formulas by enumeration, their slopes, and the recovery of known parameters."""

import math
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learning_cases import distance, law, model

import lnz
from lnz._core.checkpoint import CheckpointError
from lnz._models.single_site import single_changes
from lnz.learning._objectives import OBJECTIVES

KEY = jax.random.key(4)
PARTIAL = jax.tree_util.Partial

# Families of known parameters: a triple of spins, bits with a term of third order, categories, a quartic in the plane, a normal law.
TRIPLE = np.array([0.6, -0.4, 0.3, 0.2, -0.5, 0.1])
BITS = np.array([0.8, -0.3, 0.3, -0.5, 0.6])
QUARTIC = np.array([0.3, 0.7, 0.4, -0.3])


def spins(theta):
    j12, j13, j23 = theta[:3]
    zero = jnp.zeros_like(j12)
    return lnz.Ising(
        jnp.stack([jnp.stack([zero, j12, j13]), jnp.stack([j12, zero, j23]), jnp.stack([j13, j23, zero])]), theta[3:]
    )


def bit_energy(theta, x):
    return -(
        theta[0] * x[0]
        + theta[1] * x[1] * x[2]
        + theta[2] * x[0] * x[1]
        + theta[3] * x[2]
        + theta[4] * x[0] * x[1] * x[2]
    )


def bits(theta):
    return lnz.FunctionEnergy(PARTIAL(bit_energy, theta), lnz.Binary(3))


def category_energy(theta, x):
    same, second = (jax.nn.one_hot(x[0], 3) * jax.nn.one_hot(x[1], 3)).sum(), jax.nn.one_hot(x, 3)
    return -theta[0] * same - theta[1] * second[0, 2] - theta[2] * second[1, 0] * (x[0] + 1).astype(float)


def categories(theta):
    return lnz.FunctionEnergy(PARTIAL(category_energy, theta), lnz.Categorical(2, k=3))


def quartic_energy(theta, x):
    return theta[0] * x[0] ** 4 + theta[1] * x[1] ** 2 + theta[2] * x[0] * x[1] + theta[3] * x[0]


def quartic(theta):
    return lnz.FunctionEnergy(PARTIAL(quartic_energy, theta), lnz.Real(2))


def normal(theta):
    return lnz.Gaussian(theta[:2], jnp.exp(theta[2:]))


def own_log_z(family):
    return lambda theta: lnz.SelfNormalised(family(theta[:-1]), theta[-1])


def from_states(family, theta):
    """n exact samples of a discrete law."""
    states, logits = law(family(jnp.asarray(theta)))
    p = np.exp(logits - np.logaddexp.reduce(logits))
    return lambda rng, n: states[rng.choice(len(p), n, p=p)]


def from_quartic(rng, n):
    """x by the inverse of its distribution function on a fine line, then y ~ N(-cx/2b, 1/2b)."""
    a, b, c, d = QUARTIC
    line = np.linspace(-4, 4, 200_001)
    weights = np.exp(-(a * line**4 - c**2 * line**2 / (4 * b) + d * line))
    mass = np.cumsum(weights)
    x = np.interp(rng.random(n) * mass[-1], mass, line)
    return np.stack([x, -c * x / (2 * b) + rng.normal(size=n) / math.sqrt(2 * b)], axis=1)


def from_normal(rng, n):
    return np.array([0.5, -1.0]) + rng.normal(size=(n, 2)) * np.array([1.0, 0.5])


def quartic_log_z():
    a, b, c, d = QUARTIC
    line = np.linspace(-5, 5, 100_001)
    weights = np.exp(-(a * line**4 - c**2 * line**2 / (4 * b) + d * line))
    return math.log(weights.sum() * (line[1] - line[0]) * math.sqrt(math.pi / b))


WIDE = lnz.Gaussian(np.zeros(2), np.array([0.8, 0.8]))
# Name: the objective, the family, its parameters in the limit of much data, and how data are drawn.
RECOVERIES = {
    "pseudo-likelihood": (lnz.crf.PseudoLikelihood(), spins, TRIPLE, from_states(spins, TRIPLE)),
    "ratio-matching": (lnz.learning.RatioMatching(), bits, BITS, from_states(bits, BITS)),
    "score-matching": (lnz.learning.ScoreMatching(), quartic, QUARTIC, from_quartic),
    "sliced": (lnz.learning.SlicedScoreMatching(), quartic, QUARTIC, from_quartic),
    # The law of the noisy data: variances 1 + σ² and ¼ + σ².
    "denoising": (lnz.learning.DenoisingScoreMatching(0.5), normal, np.array([0.5, -1, -math.log(1.25), -math.log(0.5)]), from_normal),
    "noise-contrastive": (
        lnz.learning.NoiseContrastive(WIDE, samples=4), own_log_z(quartic), np.append(QUARTIC, quartic_log_z()), from_quartic,
    ),
    "energy-discrepancy": (
        lnz.learning.EnergyDiscrepancy(0.1, samples=24, stabiliser=0), spins, TRIPLE, from_states(spins, TRIPLE),
    ),
}  # fmt: skip
BLOCK = 500


@cache
def sums(name):
    """Compiled: over a block of data the sums of the loss, of its gradient, of its outer product and of the second derivative, all in θ."""
    objective, family, _, _ = RECOVERIES[name]

    def one(theta, x, key):
        return objective.loss(family(theta), x, key=key)

    def block(theta, x, keys):
        total = jnp.sum(jax.vmap(one, (None, 0, 0))(theta, x, keys))
        each = jax.vmap(jax.grad(one), (None, 0, 0))
        slopes, bends = each(theta, x, keys), jax.jacfwd(lambda t: jnp.sum(each(t, x, keys), axis=0))(theta)
        return total, jnp.sum(slopes, axis=0), slopes.T @ slopes, bends

    return jax.jit(block)


def estimated(name, x, key, theta):
    """The minimum over θ by Newton's method, and its covariance by the sandwich."""
    keys, n = jax.random.split(key, len(x)), len(x)
    cuts = range(0, n, BLOCK)
    for _ in range(10):
        parts = [sums(name)(jnp.asarray(theta), x[i : i + BLOCK], keys[i : i + BLOCK]) for i in cuts]
        slope, outer, bend = (sum(np.asarray(part[k]) for part in parts) / n for k in (1, 2, 3))
        step = np.linalg.solve(bend, slope)
        theta = theta - step * min(1, 0.5 / np.abs(step).max())
        if np.abs(step).max() < 3e-3:  # the next one would be about its square
            inverse = np.linalg.inv(bend)
            return theta, inverse @ outer @ inverse.T / n
    raise AssertionError("Newton's method has not come to rest")


def recover(name, seed):
    """Within 3 standard errors (root mean square over the parameters), which shrink as 1/√n."""
    _, _, truth, draw = RECOVERIES[name]
    rng, spreads = np.random.default_rng(seed), []
    for n in (BLOCK, 4 * BLOCK, 16 * BLOCK):
        theta, cov = estimated(name, jnp.asarray(draw(rng, n)), jax.random.key(seed + n), truth)
        z = math.sqrt((theta - truth) @ np.linalg.solve(cov, theta - truth) / len(truth))
        assert z < 3, (n, z)
        spreads.append(np.sqrt(np.diag(cov)))
    shrunk = np.exp(np.mean(np.log(spreads[2] / spreads[0])))
    assert 0.18 < shrunk < 0.35, "16 times the data should quarter the standard errors"
    assert spreads[2].max() < 0.12, "the estimate is so wide that the test shows nothing"


@pytest.mark.parametrize("name", RECOVERIES)
def test_known_parameters_come_back(name):
    recover(name, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECOVERIES)
def test_known_parameters_come_back_from_every_seed(name):
    for seed in range(100):
        recover(name, seed)


def test_every_objective_of_the_list_is_tested():
    assert set(RECOVERIES) == set(OBJECTIVES)


@pytest.mark.parametrize("name", RECOVERIES)
def test_slopes_are_those_of_finite_differences(name):
    _, _, theta, draw = RECOVERIES[name]
    x, keys = jnp.asarray(draw(np.random.default_rng(1), BLOCK)), jax.random.split(KEY, BLOCK)
    at = lambda theta: sums(name)(jnp.asarray(theta), x, keys)  # noqa: E731
    slope, bend = at(theta)[1], at(theta)[3]
    for i, step in enumerate(1e-5 * np.eye(len(theta))):
        up, down = at(theta + step), at(theta - step)
        assert float(slope[i]) == pytest.approx(float(up[0] - down[0]) / 2e-5, rel=1e-5, abs=1e-3)
        np.testing.assert_allclose(bend[i], (up[1] - down[1]) / 2e-5, rtol=1e-4, atol=1e-2)


def mean_of(objective, energy, x, n=20_000):
    """The mean over keys and its standard error."""
    keys = jax.random.split(KEY, n)
    values = np.asarray(jax.jit(jax.vmap(lambda key: objective.loss(energy, x, key=key)))(keys))
    return values.mean(), values.std() / math.sqrt(n)


class TestDiscrete:
    @pytest.mark.parametrize("name", ["rbm", "spin rbm", "potts rbm", "potts", "lattice", "partial", "labels"])
    def test_conditionals_are_those_of_enumeration(self, name):
        if name == "labels":
            tables = [np.array([[0.3, -1.0, 0.2], [0.0, -np.inf, 0.7]]), np.array([0.1, 0.5, -0.3])]
            energy = lnz.FactorGraph([2, 3], [(0, 1), (1,)], tables)
        else:
            energy, _ = model(name)
        states, logits = law(energy)
        possible = logits > -np.inf
        states, logits = states[possible], logits[possible]
        nats = np.zeros(len(states))
        ratios = np.zeros(len(states))
        for i in range(states[0].size):
            rest = np.delete(states.reshape(len(states), -1), i, axis=1)
            same = (rest[:, None] == rest[None]).all(-1)
            log_p = logits - np.logaddexp.reduce(np.where(same, logits[None], -np.inf), axis=1)
            nats -= log_p
            ratios += (1 - np.exp(log_p)) ** 2
        objectives = [lnz.crf.PseudoLikelihood(), lnz.learning.RatioMatching()]
        objectives = [objective for objective in objectives if objective.unsupported_reason(energy) is None]
        found = jax.jit(jax.vmap(lambda v: [objective.loss(energy, v) for objective in objectives]))(
            jnp.asarray(states)
        )
        assert len(found) == 1 + isinstance(lnz.capabilities.observed_space(energy), lnz.Binary | lnz.Spin)
        for values, exact in zip(found, (nats, ratios), strict=False):
            np.testing.assert_allclose(values, exact, rtol=1e-5, atol=1e-6)

    def test_an_impossible_state_is_infinitely_far(self):
        energy = lnz.FactorGraph([2, 2], [(0, 1)], [np.array([[0.0, 0.0], [0.0, -np.inf]])])
        parameters, rest = eqx.partition(energy, eqx.is_inexact_array)
        loss = jax.jit(jax.value_and_grad(lambda p, v: lnz.crf.PseudoLikelihood().loss(eqx.combine(p, rest), v)))
        assert float(loss(parameters, jnp.asarray([1, 1]))[0]) == np.inf
        value, slope = loss(parameters, jnp.asarray([1, 0]))
        assert float(value) == pytest.approx(math.log(2))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))

    def test_a_unit_of_one_value_has_no_changes(self):
        energy = lnz.FactorGraph([1, 2], [(0, 1)], [np.array([[0.0, 1.0]])])
        assert jax.jit(lambda v: single_changes(energy, v))(jnp.asarray([0, 1])).tolist() == [[-np.inf], [-1.0]]

    def test_energy_discrepancy_of_two_samples_by_enumeration(self):
        theta, change, stabiliser = jnp.asarray([0.8, -0.6, 0.3]), 0.3, 0.5
        energy = categories(theta)
        states, logits = law(energy)
        far = (states[:, None] != states[None]).sum(-1)
        q = np.where(far, change / 2, 1.0) ** np.maximum(far, 1) * (1 - change) ** (2 - far)
        assert np.allclose(q.sum(1), 1)
        x = 5
        gap = np.exp(logits - logits[x])  # exp(E(x) - E(x'))
        terms = np.log((stabiliser + gap[:, None] + gap[None]) / 2)
        exact = sum(q[x, y] * q[y] @ terms @ q[y] for y in range(9))
        objective = lnz.learning.EnergyDiscrepancy(change, samples=2, stabiliser=stabiliser)
        mean, error = mean_of(objective, energy, jnp.asarray(states[x]))
        assert abs(mean - exact) < 4.5 * error
        assert abs(exact) > 20 * error, "this test shows nothing"

    def test_noise_contrastive_by_enumeration(self):
        energy, noise = (
            lnz.SelfNormalised(bits(jnp.asarray(BITS)), 2.0),
            lnz.Independent([0.5, -0.2, 0.1], lnz.Binary(3)),
        )
        states, logits = law(energy)
        _, log_noise = law(noise)
        log_noise = log_noise - np.logaddexp.reduce(log_noise)
        x, nu = 6, 3
        g = logits - log_noise - math.log(nu)
        exact = np.log1p(np.exp(-g[x])) + nu * np.exp(log_noise) @ np.log1p(np.exp(g))
        mean, error = mean_of(lnz.learning.NoiseContrastive(noise, samples=nu), energy, jnp.asarray(states[x]))
        assert abs(mean - exact) < 4.5 * error < 0.05


class TestContinuous:
    X = np.array([0.7, -0.4])

    def exact(self):
        """½ |∇E|² - ΔE of the quartic."""
        a, b, c, d = QUARTIC
        x, y = self.X
        slope = np.array([4 * a * x**3 + c * y + d, 2 * b * y + c * x])
        return 0.5 * slope @ slope - 12 * a * x**2 - 2 * b

    def test_score_matching_is_the_formula(self):
        energy = quartic(jnp.asarray(QUARTIC))
        assert float(jax.jit(lnz.learning.ScoreMatching().loss)(energy, jnp.asarray(self.X))) == pytest.approx(
            self.exact()
        )
        mean, error = mean_of(lnz.learning.SlicedScoreMatching(2), energy, jnp.asarray(self.X))
        assert abs(mean - self.exact()) < 4.5 * error

    def test_the_trace_in_blocks_of_any_shape(self):
        """20 entries: a whole block and a part."""
        scale = jnp.arange(1.0, 21).reshape(4, 5)
        energy = lnz.FunctionEnergy(PARTIAL(lambda s, x: jnp.sum(s * jnp.cos(x)), scale), lnz.Real((4, 5)))
        x = np.linspace(-1, 1, 20).reshape(4, 5)
        exact = 0.5 * np.sum((scale * np.sin(x)) ** 2) + np.sum(scale * np.cos(x))
        assert float(jax.jit(lnz.learning.ScoreMatching().loss)(energy, jnp.asarray(x))) == pytest.approx(float(exact))

    def test_denoising_is_the_formula(self):
        precision, sigma = np.array([2.0, 0.5]), 0.4
        exact = 0.5 * np.sum((precision * self.X) ** 2 + (sigma * precision - 1 / sigma) ** 2)
        mean, error = mean_of(
            lnz.learning.DenoisingScoreMatching(sigma), lnz.Gaussian(np.zeros(2), precision), jnp.asarray(self.X)
        )
        assert abs(mean - exact) < 4.5 * error

    def test_energy_discrepancy_of_one_sample(self):
        """E(x) - E[E(x + √2 σ ξ)] = -σ² tr Λ of a normal law."""
        objective = lnz.learning.EnergyDiscrepancy(0.3, samples=1, stabiliser=0)
        mean, error = mean_of(objective, lnz.Gaussian(np.zeros(2), [2.0, 0.5]), jnp.asarray(self.X))
        assert abs(mean + 0.09 * 2.5) < 4.5 * error


class TestFit:
    def test_one_line_chooses(self):
        """The same call with a negative phase and with an objective, on the law itself as weighted data: both find its parameters."""
        states, logits = law(spins(jnp.asarray(TRIPLE)))
        options = {
            "optimizer": optax.adam(0.05),
            "weights": np.exp(logits),
            "batch_size": 8,
            "epochs": 400,
            "evaluate_every": 400,
            "key": KEY,
        }
        for chosen in ({"objective": lnz.crf.PseudoLikelihood()}, {"negative_phase": lnz.learning.ExactPhase()}):
            fitted = lnz.fit(lnz.Ising(np.zeros((3, 3))), states, **chosen, **options).energy
            np.testing.assert_allclose(fitted.fields, TRIPLE[3:], atol=0.01)
            np.testing.assert_allclose(fitted.couplings.matrix()[np.triu_indices(3, 1)], TRIPLE[:3], atol=0.01)

    def test_figures_weights_and_a_short_batch(self):
        """A datum of weight 2 counts twice, and one of weight 0 not at all, even where it is impossible; the last batch is short."""
        theta = jnp.asarray(TRIPLE)
        data = from_states(spins, TRIPLE)(np.random.default_rng(0), 7)
        trainer = lnz.Trainer(optax.sgd(1.0), objective=lnz.crf.PseudoLikelihood())
        state = trainer.init(spins(theta), KEY, batch_size=8)
        doubled, figures = trainer.step(state, np.concatenate([data, data[:1]]))
        weighted, same = trainer.step(state, data, [2, 1, 1, 1, 1, 1, 1])
        assert distance(doubled.energy, weighted.energy) < 1e-12
        rows = jnp.asarray(np.concatenate([data, data[:1]]))
        nats = float(jnp.mean(jax.jit(jax.vmap(lambda x: lnz.crf.PseudoLikelihood().loss(spins(theta), x)))(rows)))
        assert float(figures["objective"]) == pytest.approx(nats)
        assert float(same["objective"]) == pytest.approx(nats)
        assert set(figures) == set(trainer.figures(state.energy)) == {"objective", "gradient_norm"}

        def wall(theta, x):
            return jnp.where(jnp.all(x == 1), jnp.inf, -theta * jnp.sum(x))

        walled = lnz.FunctionEnergy(PARTIAL(wall, jnp.asarray(0.1)), lnz.Spin(3))
        kept = lnz.fit(
            walled,
            np.array([[1, 1, 1], [1, 1, -1], [1, -1, -1]]),
            weights=[0, 1, 1],
            objective=lnz.crf.PseudoLikelihood(),
            epochs=1,
            key=KEY,
        )
        assert np.isfinite(jax.tree.leaves(kept.energy)[0])
        with pytest.raises(lnz.learning.Diverged, match="NaN or infinite"):
            lnz.fit(walled, np.array([[1, 1, 1], [1, 1, -1]]), objective=lnz.crf.PseudoLikelihood(), epochs=1, key=KEY)

    def test_a_run_goes_on_from_its_checkpoint_and_knows_its_objective(self, tmp_path):
        data = from_normal(np.random.default_rng(0), 20)
        options = {"optimizer": optax.sgd(0.1), "batch_size": 8, "key": KEY, "evaluate_every": 2}
        energy, objective = lnz.Gaussian(np.zeros(2), np.ones(2)), lnz.learning.SlicedScoreMatching()
        whole = lnz.fit(energy, data, objective=objective, epochs=4, **options)
        file = tmp_path / "run"
        lnz.fit(energy, data, objective=objective, epochs=2, checkpoint=file, **options)
        resumed = lnz.fit(
            energy, data, objective=objective, epochs=4, checkpoint=file, monitor=lnz.learning.Monitor(), **options
        )
        assert distance(resumed.energy, whole.energy) == 0
        with pytest.raises(CheckpointError, match="objective is SlicedScoreMatching"):
            lnz.fit(energy, data, objective=lnz.learning.ScoreMatching(), epochs=4, checkpoint=file, **options)


def rounded(theta, x):
    return theta * jnp.sum(jnp.round(x))


def relu(theta, x):
    return jnp.sum(jax.nn.relu(theta * x))


def vector(theta, x):
    return theta * x


REAL = lnz.Gaussian(np.zeros(2), np.ones(2))


@pytest.mark.parametrize(
    ("objective", "energy", "reason"),
    [
        (lnz.crf.PseudoLikelihood(), REAL, "Binary, Spin, Categorical or MixedCategorical space, not Real"),
        (lnz.learning.RatioMatching(), categories(jnp.zeros(3)), "Binary or Spin space, not Categorical"),
        (lnz.learning.ScoreMatching(), bits(jnp.zeros(5)), "needs a Real space"),
        (lnz.learning.ScoreMatching(), lnz.FunctionEnergy(PARTIAL(relu, jnp.ones(2)), lnz.Box(0.0, 1.0, shape=(2,))), "not Box"),
        (lnz.learning.ScoreMatching(), lnz.FunctionEnergy(PARTIAL(relu, jnp.ones(2)), lnz.Real(2)), "second derivative .* is zero everywhere"),
        (lnz.learning.SlicedScoreMatching(), lnz.FunctionEnergy(PARTIAL(relu, jnp.ones(2)), lnz.Real(2)), "second derivative .* is zero everywhere"),
        (lnz.learning.DenoisingScoreMatching(0.1), lnz.FunctionEnergy(PARTIAL(rounded, jnp.ones(())), lnz.Real(2)), "it rounds"),
        (lnz.learning.NoiseContrastive(WIDE), REAL, "wrap the energy as lnz.SelfNormalised"),
        (lnz.learning.NoiseContrastive(WIDE), lnz.SelfNormalised(bits(jnp.zeros(5))), "the noise is on Real"),
        (lnz.learning.EnergyDiscrepancy(0.1), lnz.FunctionEnergy(PARTIAL(relu, jnp.ones(2)), lnz.Box(0.0, 1.0, shape=(2,))), "not Box"),
        (lnz.learning.EnergyDiscrepancy(1.0), bits(jnp.zeros(5)), "below 1"),
    ],
)  # fmt: skip
def test_wrong_spaces_and_energies_are_refused_before_any_work(objective, energy, reason):
    with pytest.raises(ValueError, match=reason):
        lnz.Trainer(objective=objective).init(energy, KEY, batch_size=2)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="give either an objective or phases"):
        lnz.Trainer(negative_phase=lnz.learning.ExactPhase(), objective=lnz.learning.ScoreMatching())
    with pytest.raises(TypeError, match="objective must be one such as"):
        lnz.Trainer(objective="score-matching")  # pyright: ignore[reportArgumentType]
    for make, reason in [
        (lambda: lnz.learning.DenoisingScoreMatching(0.0), "noise must be a finite number above 0"),
        (lambda: lnz.learning.DenoisingScoreMatching(math.nan), "noise must be"),
        (lambda: lnz.learning.SlicedScoreMatching(0), "slices must be"),
        (lambda: lnz.learning.EnergyDiscrepancy(0.1, stabiliser=-1), "stabiliser must be"),
        (lambda: lnz.learning.EnergyDiscrepancy(0.1, samples=0), "samples must be"),
        (
            lambda: lnz.learning.NoiseContrastive(quartic(jnp.asarray(QUARTIC))),
            "offers neither.*inherit from lnz.capabilities.Normalised",
        ),
        (lambda: lnz.learning.NoiseContrastive(WIDE, samples=0), "samples must be"),
        (lambda: lnz.SelfNormalised(REAL, log_z=np.zeros(2)), "log_z must be one number"),
        (lambda: lnz.learning.SlicedScoreMatching().loss(REAL, jnp.zeros(2)), "pass a random key"),
    ]:
        with pytest.raises(ValueError, match=reason):
            make()

    class Vector(lnz.Energy):
        theta: jax.Array

        @property
        def space(self):
            return lnz.Real(2)

        def __call__(self, x):
            return self.theta * x

    with pytest.raises(ValueError, match="must return one real number"):
        lnz.Trainer(objective=lnz.learning.ScoreMatching()).init(Vector(jnp.ones(2)), KEY, batch_size=2)


def test_the_own_log_z():
    model = lnz.SelfNormalised(lnz.RBM(visible=4, hidden=2, key=KEY), log_z=3.0)
    log_z = float(lnz.log_partition(model.energy, route=lnz.routes.Enumeration()).value)
    assert float(lnz.log_partition(model, route=lnz.routes.Enumeration()).value) == pytest.approx(log_z - 3.0)
    assert lnz.capabilities.observed_space(model) == lnz.Binary(4)
    state = (jnp.ones(4), jnp.zeros(2))
    assert float(model(state)) == pytest.approx(float(model.energy(state)) + 3)
