"""Steps where works of pilot chains vary and keep varying: against the best placement, and on a path that is slow."""

import jax
import jax.numpy as jnp
import numpy as np

import lnz
from lnz.kernels._kernels import Gibbs
from lnz.routes._annealing.ais import planned
from lnz.routes._annealing.path import Path


class Units(lnz.capabilities.Sweepable, lnz.capabilities.Annealable):
    """Independent bits, which one sweep draws afresh; or, told so, none of them in the second half of the path."""

    pull: jax.Array
    beta: jax.Array
    frozen: jax.Array

    @property
    def space(self):
        return lnz.Binary(16)

    def __call__(self, x):
        return self.beta * self.pull * jnp.sum(x.astype(self.pull.dtype))

    def gibbs(self, key, v):
        p = jax.nn.sigmoid(-self.beta * self.pull)
        stays = (self.frozen > 0) & (self.beta > 0.5)
        return jnp.where(stays, v, jax.random.bernoulli(key, p, v.shape).astype(v.dtype))

    def tempered(self, base, beta):
        return Units(self.pull, jnp.asarray(beta), self.frozen)


@jax.jit
def placed(model, key):
    """Inverse temperatures of two schedules, means over 16 pilots."""
    path = Path(model, lnz.Independent(np.zeros(16), lnz.Binary(16)))

    def one(key):
        return [planned(path, Gibbs(), key, name, 1000, 1).betas[:1001] for name in ("friction", "barrier")]

    return [jnp.mean(betas, axis=0) for betas in jax.vmap(one)(jax.random.split(key, 16))]


def test_where_chains_forget_at_once_steps_follow_the_spread_of_the_slope(key):
    """Then √c is the standard deviation of the slope: the shortest way in thermodynamic length (Sivak and Crooks)."""
    betas, _ = map(np.asarray, placed(Units(jnp.asarray(6.0), jnp.asarray(1.0), jnp.asarray(0.0)), key))
    assert betas[0] == 0
    assert betas[-1] == 1
    assert (np.diff(betas) > 0).all()
    grid = np.linspace(0, 1, 1001)
    p = 1 / (1 + np.exp(6 * grid))
    length = np.cumsum(np.sqrt(p * (1 - p)))
    shares = np.interp(np.linspace(0, 1, 11), length / length[-1], grid)
    np.testing.assert_allclose(betas[::100], shares, atol=0.06)  # a tenth of the steps is spread evenly
    assert betas[500] < 0.4  # evenly spaced steps, or in proportion to c itself, would not pass


def test_where_chains_stay_what_they_are_more_steps_are_taken(key):
    """No move in the second half: all that is gained there is of one sign, and only the covariance with the whole work sees it."""
    free, stuck = (placed(Units(jnp.asarray(2.0), jnp.asarray(1.0), jnp.asarray(x)), key) for x in (0.0, 1.0))
    late = [float(np.mean(np.asarray(betas) > 0.5)) for betas in (free[0], stuck[0], stuck[1])]
    assert late[1] > late[0] + 0.15
    assert late[1] > late[2] + 0.15
