"""`check_route`: a route keeps the promises of its protocol, on energies whose log Z is known otherwise."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.energy import Energy, as_energy
from lnz._core.estimate import Estimate
from lnz._core.route import Route
from lnz._models.independent import Gaussian
from lnz._models.linear_chain import LinearChain
from lnz._models.pairwise import Ising, Potts
from lnz._models.rbm import RBM
from lnz._partition import log_partition
from lnz.testing._sums import Sums, difference, small, tolerance


def check_route(
    route: Route,
    *,
    energies: Iterable[Any] | None = None,
    key: PRNGKeyArray | None = None,
    seeds: int = 100,
    unbiased: bool = True,
) -> list[str]:
    """Check a route of your own on small energies whose log Z is found by summing over all states.

    An energy that the route does not support must have a reason, which `log_partition` then raises. On the others the estimate must be one number
    within its own bounds, the same under `jit` and `vmap`. An exact value, and bounds that always hold, must agree with the sum over all states.
    If the route draws samples, the mean of Ẑ over many seeds must be Z (|z| < 4), and its bounds may fail in at most 5 % of the seeds, or as often
    as its confidence says if that is more. The derivative of log Z must be finite, and for an exact route E[-∂E].

    Args:
        route: the route.
        energies: energies to check it on, discrete ones of at most 2^14 states or with a closed form; by default some models of the library. At least
            one of them must be supported.
        key: a random key; a fixed one by default.
        seeds: how many times a route that draws samples is run. The more, the smaller the bias that shows.
        unbiased: whether E[Ẑ] = Z is checked, for a route that draws samples. Bridge estimates, for instance, are consistent but biased.

    Returns:
        What was checked: a line per energy, with the reason where it is not supported.

    Raises:
        AssertionError: where a check fails, with the cause and what to look at.

    Example:
        >>> import lnz
        >>> lnz.testing.check_route(lnz.routes.ForwardBackward())[-1]
        'LinearChain: reason, value, bounds, compiled, gradient'
    """
    key = jax.random.key(0) if key is None else key
    energies = _examples() if energies is None else [as_energy(energy) for energy in energies]
    done = [_Check(route, energy, key, seeds, unbiased).run() for energy in energies]
    if all("not supported" in line for line in done):
        raise AssertionError(
            f"{type(route).__name__} supports none of the energies ({'; '.join(done)}). Pass energies=… that it supports"
        )
    return done


def _examples() -> list[Energy]:
    """Small, asymmetric energies of several modes: one for every kind of structure that routes use."""
    rng = np.random.default_rng(2)

    def draw(*shape: int) -> Array:
        return jnp.asarray(rng.normal(size=shape), jnp.result_type(float))

    dense = np.asarray(draw(4, 4))
    return [
        RBM.from_parameters(1.5 * draw(3, 2), draw(3), draw(2)),
        Ising(jnp.asarray(dense + dense.T - 2 * np.diag(np.diag(dense))), draw(4)),
        Ising.lattice((2, 3), draw(2, 2, 3), draw(2, 3), periodic=False),
        Potts.lattice((2, 2), draw(2, 2, 2), draw(2, 2, 3), q=3, periodic=False),
        Gaussian(draw(2), jnp.exp(draw(2))),
        LinearChain(draw(4, 3), draw(3, 3)),
    ]


class _Check:
    def __init__(self, route: Route, energy: Energy, key: PRNGKeyArray, seeds: int, unbiased: bool):
        self.route = route
        self.energy = energy
        self.key = key
        self.keys = jax.random.split(key, seeds if route.random else 1)
        self.unbiased = unbiased
        self.name = f"{type(route).__name__} on {type(energy).__name__}"
        self.sums = Sums(energy)
        self.close = tolerance(self.sums.flat.dtype)

    def require(self, good: Any, cause: str, remedy: str) -> None:
        if not good:
            raise AssertionError(f"{self.name}: {cause}. {remedy}")

    def run(self) -> str:
        reason = self.reason()
        if reason is not None:
            return f"{type(self.energy).__name__}: not supported ({reason})"
        done = ["reason"]
        estimates = self.estimates()
        done += self.means(estimates) if self.route.random else self.value(estimates)
        done += self.bounds(estimates)
        done += self.derivative(estimates)
        return f"{type(self.energy).__name__}: {', '.join(done)}"

    @functools.cached_property
    def truth(self) -> float:
        return self.sums.log_z() if small(self.energy.space) else float(log_partition(self.energy).value)

    def log_z(self, flat: Any, key: Any) -> Estimate:
        return log_partition(self.sums.at(flat), route=self.route, key=key if self.route.random else None)

    def reason(self) -> str | None:
        """Why the energy is not supported is a value: nothing is raised until log Z is asked for, and then with that reason."""
        reason = self.route.unsupported_reason(self.energy)
        self.require(
            reason is None or (isinstance(reason, str) and reason),
            f"`unsupported_reason` returns {reason!r}", "It is None, or why the energy is not supported",
        )  # fmt: skip
        if reason is not None:
            self.raises(reason, self.key, "an energy that is not supported")
            return reason
        cost = self.route.cost(self.energy)
        self.require(0 <= cost < np.inf, f"`cost` is {cost}", "It is a number of energy evaluations")
        if self.route.random:
            self.raises("", None, "a missing key")
        return None

    def raises(self, words: str, key: Any, what: str) -> None:
        try:
            log_partition(self.energy, route=self.route, key=key)
        except ValueError as error:
            self.require(
                words in str(error),
                f"the error for {what} does not give the reason {words!r}",
                "Leave `require` as it is",
            )
        else:
            self.require(False, f"{what} raises no ValueError", "Call `Route.require`, or leave it as it is")

    def estimates(self) -> Estimate:
        """Of every seed, compiled; each one number within its own bounds."""
        found = jax.jit(lambda keys: jax.lax.map(lambda key: self.log_z(self.sums.flat, key), keys))(self.keys)
        value = np.asarray(found.value)
        self.require(value.ndim == 1, f"log Z has shape {value.shape[1:]}", "`log_partition` returns one number")
        self.require(np.isfinite(value).all(), "log Z is not finite", "Sum by logarithms, without clipping")
        order = (np.asarray(found.lower) <= value) & (value <= np.asarray(found.upper))
        self.require(
            order.all(),
            "the value lies outside its own bounds",
            "Look at `lower` and `upper`: -inf and inf where none is known",
        )
        return found

    def value(self, found: Estimate) -> list[str]:
        if found.guarantee != "exact":
            return []
        far = difference(found.value[0], self.truth)
        self.require(
            far <= 1e3 * self.close, f"log Z differs from the sum over all states (relatively by {far:.2g})",
            "Look at the sum, or say in `guarantee` that it is not exact",
        )  # fmt: skip
        return ["value"]

    def means(self, found: Estimate) -> list[str]:
        """E[Ẑ] = Z."""
        if found.guarantee == "approximate" or not self.unbiased:
            return []
        ratio = np.exp(np.asarray(found.value, float) - self.truth)
        spread = ratio.std(ddof=1) / np.sqrt(len(ratio))
        z = (ratio.mean() - 1) / max(spread, 1e-9)
        self.require(
            abs(z) < 4, f"the mean of Ẑ / Z over {len(ratio)} seeds is {ratio.mean():.4g} ± {spread:.2g}, not 1 (z = {z:.1f})",
            "Look at the weights: kernels that do not leave their distribution invariant, a missing constant, log of a mean against mean of logs",
        )  # fmt: skip
        return ["E[Ẑ] = Z"]

    def bounds(self, found: Estimate) -> list[str]:
        """They always hold, or as often as their confidence says."""
        if found.guarantee == "approximate":
            return []
        slack = self.close * (1 + abs(self.truth))
        broken = (np.asarray(found.lower) > self.truth + slack) | (np.asarray(found.upper) < self.truth - slack)
        allowed = max(1 - found.confidence, 0.05) if self.route.random else 1 - found.confidence
        most = allowed * len(broken) + 4 * np.sqrt(allowed * len(broken))
        self.require(
            broken.sum() <= most, f"its bounds do not hold in {broken.sum()} of {len(broken)} runs, with confidence {found.confidence:.4g}",
            "Look at the bounds: rounding belongs to them",
        )  # fmt: skip
        return ["bounds"]

    def derivative(self, found: Estimate) -> list[str]:
        """The same number in a plain call and under `vmap` over parameters, and the derivative there."""
        sums, first = self.sums, self.keys[0]
        flats = jnp.stack([sums.flat, 0.5 * sums.flat])
        value_and_slope = jax.value_and_grad(lambda flat: self.log_z(flat, first).value)
        batch, slopes = jax.jit(jax.vmap(value_and_slope))(flats)
        alone = self.log_z(sums.flat, first).value
        self.require(
            max(difference(alone, found.value[0]), difference(batch[0], found.value[0])) <= 1e4 * self.close,
            "log Z differs between a plain call, jit and vmap", "Look for Python conditions on values, and for state outside the arguments",
        )  # fmt: skip
        if not sums.flat.size:
            return ["compiled"]
        self.require(np.isfinite(np.asarray(slopes)).all(), "∇ log Z is not finite", "Look at impossible states: 0 · ∞")
        if found.guarantee == "exact" and small(self.energy.space):
            far = max(difference(slope, sums.gradient(flat)) for slope, flat in zip(slopes, flats, strict=True))
            self.require(
                far <= 1e4 * self.close, f"∇ log Z differs from E[-∂E] (relatively by {far:.2g})",
                "Look at `mean_gradient` and `expectation`",
            )  # fmt: skip
        return ["compiled", "gradient"]
