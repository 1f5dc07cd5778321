"""`check_energy`: an energy keeps the promises of its class and of every capability that it has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from lnz._choose import choose
from lnz._core.capabilities import (
    Blockwise,
    Conditional,
    Factored,
    Featured,
    Marginal,
    Normalised,
    collapsed,
    complete,
    data_energy_of,
    data_space,
    free_energy_of,
    log_latent_volume,
    observed_space,
    tempered,
    tempers_free_energy,
    visible_part,
)
from lnz._core.energy import Energy, ModelLike, as_energy
from lnz._core.spaces import Categorical, Product
from lnz._models.independent import base_of
from lnz._partition import log_partition
from lnz.kernels._kernels import Gibbs
from lnz.routes._exact.enumeration import Enumeration
from lnz.testing._sums import (
    UNLIKELY,
    Sums,
    difference,
    draw,
    frequencies,
    listed,
    log_sum,
    p_value,
    rows_of,
    small,
    tolerance,
)

DRAWS = 4096


def check_energy(energy: ModelLike, *, key: PRNGKeyArray | None = None) -> list[str]:
    """Check an energy of your own: its values, derivatives and everything that it offers to routes and kernels.

    A discrete energy of at most 2^14 states is compared with sums over the list of all of them: log Z, its gradient and curvature, free energies,
    factors, closed form and samples, block energies, conditionals, feature energies, paths from a base; Gibbs sweeps must leave the distribution
    invariant (a chi-square test of 4,096 chains that fails by chance once in 10^6). Make a small member of your family of models for it. Of larger
    and of continuous energies only values, derivatives, compilation and batches are checked.

    Args:
        energy: an `Energy`, or any callable with a `space`.
        key: a random key for the states, directions and chains; a fixed one by default.

    Returns:
        What was checked, in the order of the checks; the curvature of log Z in float64 alone.

    Raises:
        AssertionError: where a check fails, with the cause and what to look at.

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> class Coin(lnz.Energy):
        ...     bias: jnp.ndarray
        ...     @property
        ...     def space(self):
        ...         return lnz.Spin(3)
        ...     def __call__(self, x):
        ...         return -self.bias * jnp.sum(x)
        >>> lnz.testing.check_energy(Coin(jnp.asarray(0.3)))
        ['values', 'dtype', 'derivatives', 'log Z', 'gradient', 'path', 'Gibbs sweep']
    """
    energy = as_energy(energy)
    check = _Check(energy, jax.random.key(0) if key is None else key)
    check.values()
    check.dtype()
    check.derivatives()
    if small(energy.space) and small(observed_space(energy)):
        check.against_the_list()
    return check.done


class _Check:
    def __init__(self, energy: Energy, key: PRNGKeyArray):
        self.energy, self.key = energy, key
        self.name = type(energy).__name__
        self.sums = Sums(energy)
        self.done: list[str] = []

    def require(self, good: Any, cause: str, remedy: str) -> None:
        if not good:
            raise AssertionError(f"{self.name}: {cause}. {remedy}")

    def agree(self, found: Any, wanted: Any, cause: str, remedy: str, looser: float = 1.0) -> None:
        far = difference(found, wanted)
        self.require(far <= looser * self.close, f"{cause} (relative difference {far:.2g})", remedy)

    @property
    def close(self) -> float:
        return tolerance(self.value_dtype)

    def values(self) -> None:
        """One real number per state, never NaN, the same alone, under `jit` and in a batch."""
        energy = self.energy
        out = jax.eval_shape(energy, energy.space.struct)
        self.require(
            isinstance(out, jax.ShapeDtypeStruct) and out.shape == () and jnp.issubdtype(out.dtype, jnp.floating),
            f"one state gives {out}, not one real number",
            "Sum over the entries of x in `__call__`; batches go through `jax.vmap`",
        )
        self.value_dtype = out.dtype
        states = draw(energy.space, jax.random.fold_in(self.key, 1), 8)
        batch = np.asarray(jax.jit(jax.vmap(energy))(states), float)
        alone = [float(energy(jax.tree.map(lambda x, i=i: x[i], states))) for i in range(8)]
        self.require(
            not np.isnan(batch).any(),
            "the energy of a state of its space is NaN",
            "Write +inf for a state that is impossible, and look for 0 · ∞ or a logarithm of a negative number",
        )
        self.require(
            not (batch == -np.inf).any(),
            "the energy of a state is -inf, so Z is infinite",
            "Look for a logarithm of 0 with the wrong sign",
        )
        self.agree(
            batch, alone, "the energy of a batch under jit and vmap differs from that of single states",
            "Look for Python conditions on values, for sums over the whole array and for state outside the arguments",
        )  # fmt: skip
        self.done.append("values")

    def dtype(self) -> None:
        """Energies have the precision of the parameters."""
        floating = [x.dtype for x in jax.tree.leaves(self.energy) if eqx.is_inexact_array(x)]
        if floating:
            wanted = jnp.result_type(*floating)
            self.require(
                self.value_dtype == wanted,
                f"its parameters are {wanted}, but energies are {self.value_dtype}",
                "Cast constants and states to the dtype of the parameters",
            )
            self.done.append("dtype")

    def derivatives(self) -> None:
        """∂E against differences, along a random direction of the parameters."""
        sums, states = self.sums, draw(self.energy.space, jax.random.fold_in(self.key, 2), 8)
        if not sums.flat.size:
            return
        direction = jax.random.normal(jax.random.fold_in(self.key, 3), sums.flat.shape, sums.flat.dtype)
        values = jax.jit(jax.vmap(lambda flat, x: sums.at(flat)(x), in_axes=(None, 0)))
        slopes = jax.jit(jax.vmap(jax.grad(lambda flat, x: sums.at(flat)(x)), in_axes=(None, 0)))(sums.flat, states)
        possible = np.isfinite(np.asarray(values(sums.flat, states)))
        self.require(
            np.isfinite(np.asarray(slopes)[possible]).all(),
            "the derivative of the energy with respect to the parameters is not finite at a possible state",
            "Look for a square root, norm or logarithm at 0, and for `jnp.where` with an infinite branch",
        )
        found = np.asarray(slopes @ direction, float)[possible]
        wanted, rough = _stencil(lambda flat: np.asarray(values(flat, states), float)[possible], sums.flat, direction)
        self.require(
            difference(found, wanted) <= rough,
            "∂E differs from differences of the energy",
            "Look at custom derivatives, `stop_gradient`, and parameters that are rounded or used as integers",
        )
        self.done.append("derivatives")

    # ------------------------------------------------------------------------------------- against the list of states

    def against_the_list(self) -> None:
        self.log_partition()
        for check in (
            self.free_energy, self.factors, self.closed_form, self.block_energies, self.conditionals, self.features, self.data, self.path,
            self.sweeps,
        ):  # fmt: skip
            check()

    def log_partition(self) -> None:
        """log Z and its derivatives, by enumeration and by the route that `choose` picks."""
        sums, flat = self.sums, self.sums.flat

        def log_z(flat: Any, route: Any) -> Any:
            return log_partition(sums.at(flat), route=route).value

        self.require(np.isfinite(sums.log_z()), "no state is possible: Z = 0", "Give some state a finite energy")
        chosen = choose(self.energy).route
        for route in (Enumeration(), *(() if chosen.random or isinstance(chosen, Enumeration) else (chosen,))):
            name = type(route).__name__
            value, slope = jax.jit(jax.value_and_grad(lambda flat, route=route: log_z(flat, route)))(flat)
            what = (
                "Look at `free_energy`, `collapsed`, `block_energies`, `factors` and `log_normaliser`, whichever it has"
            )
            self.agree(value, sums.log_z(), f"log Z by {name} differs from the sum over all states", what)
            self.agree(slope, sums.gradient(), f"∇ log Z by {name} differs from E[-∂E]", what)
        self.done += ["log Z", "gradient"] if flat.size else ["log Z"]
        if flat.size and jnp.finfo(flat.dtype).bits == 64:
            direction = jax.random.normal(jax.random.fold_in(self.key, 4), flat.shape, flat.dtype)
            curve = jax.jit(lambda flat: jax.jvp(jax.grad(lambda f: log_z(f, Enumeration())), (flat,), (direction,))[1])
            wanted, rough = _stencil(sums.gradient, flat, direction)
            self.require(
                difference(curve(flat), wanted) <= rough,
                "∇² log Z differs from differences of the gradient",
                "Look at custom derivatives: each must have a derivative of its own",
            )
            self.done.append("curvature")

    def free_energy(self) -> None:
        """T6: F(v) = -log Σ_h exp(-E(v, h)), and the collapsed energy has the same Z."""
        energy, sums = self.energy, self.sums
        if energy.offers(Marginal) is not None:
            self.agree(
                -log_sum(-sums.free_energies), -sums.log_z(),
                "Σ_v exp(-F(v)) differs from Z", "Look at `free_energy`: it sums exp(-E) over the latent variables",
            )  # fmt: skip
            if isinstance(energy.space, Product) and energy.space.spaces[0] == observed_space(energy):
                joint = sums.energies()[0].reshape(len(sums.free_energies), -1)
                self.agree(
                    sums.free_energies, -log_sum(-joint, axis=1),
                    "F(v) differs from -log Σ_h exp(-E(v, h))", "Look at `free_energy`",
                )  # fmt: skip
            self.done.append("free energy")
        smaller = collapsed(energy)
        if smaller is not energy and small(smaller.space):
            values = jax.jit(jax.vmap(smaller))(listed(smaller.space))
            self.agree(
                log_sum(-np.asarray(values, float)), sums.log_z(), "the collapsed energy has another Z",
                "Look at `collapsed`: constants of summed variables belong to it",
            )  # fmt: skip
            self.done.append("collapsed")

    def factors(self) -> None:
        factored = self.energy.offers(Factored)
        if factored is None:
            return
        graph = factored.factors()
        self.require(
            graph.space.count == self.energy.space.count,
            f"its factor graph has {graph.space.count} states, its space {self.energy.space.count}",
            "`factors` has one variable per entry of the space, latent ones last, with as many values",
        )
        values = np.asarray(jax.jit(jax.vmap(graph))(listed(graph.space)), float)
        self.agree(
            values, self.sums.energies()[0], "the factor graph has other energies",
            "Look at `factors`: scopes in the order of the space's entries, tables of -E, constants among them",
        )  # fmt: skip
        self.done.append("factors")

    def closed_form(self) -> None:
        energy, sums = self.energy, self.sums
        normalised = energy.offers(Normalised)
        if normalised is None:
            return
        self.agree(
            normalised.log_normaliser(), sums.log_z(), "`log_normaliser` differs from the sum over all states",
            "Look at its constants",
        )  # fmt: skip
        drawn = normalised.sample(jax.random.fold_in(self.key, 5), DRAWS)
        observed_space(energy).validate(drawn, batch=True)
        self.distributed(drawn, "exact samples", "Look at `sample`")
        self.done.append("closed form and samples")

    def block_energies(self) -> None:
        energy = self.energy
        blockwise = energy.offers(Blockwise)
        if blockwise is None or math.prod(energy.space.shape) < 2:
            return
        values = self.sums.energies()[0]
        for size in {2, len(values) // 2}:
            block = jax.jit(blockwise.block_energies(size))
            for first in (0, len(values) - size):
                start = energy.space.decode(jnp.asarray(first, jnp.uint32))
                self.agree(
                    block(start), values[first : first + size], f"block energies of {size} states differ from single ones",
                    "Look at `block_energies`: the last entries of the state run fastest",
                )  # fmt: skip
        self.done.append("block energies")

    def conditionals(self) -> None:
        """log p(v_i | rest), up to a constant per unit."""
        energy, sums = self.energy, self.sums
        conditional = energy.offers(Conditional)
        if conditional is None:
            return
        found = np.asarray(jax.jit(jax.vmap(conditional.conditionals))(sums.observed), float)  # (states, units, values)
        space: Any = observed_space(energy)
        units, values = space.size, space.categories
        self.require(
            found.shape[1:] == (units, values), f"`conditionals` has shape {found.shape[1:]}",
            f"It is (units, values), here ({units}, {values})",
        )  # fmt: skip
        table = -sums.free_energies.reshape([values] * units)
        for unit in range(units):
            wanted = np.moveaxis(table, unit, -1)
            every = np.broadcast_to(np.expand_dims(wanted, unit), (*table.shape, values)).reshape(-1, values)
            self.agree(
                found[:, unit] - log_sum(found[:, unit], axis=1)[:, None], every - log_sum(every, axis=1)[:, None],
                f"`conditionals` of unit {unit} differ from ratios of exp(-F)", "Look at their sign and the order of values",
            )  # fmt: skip
        self.done.append("conditionals")

    def features(self) -> None:
        """The smooth function of features agrees at states."""
        energy, sums = self.energy, self.sums
        featured = energy.offers(Featured)
        if featured is None:
            return
        space = observed_space(energy)
        phi = jax.nn.one_hot(sums.observed, space.k) if isinstance(space, Categorical) else sums.observed
        values = jax.jit(jax.vmap(featured.feature_energy))(phi.astype(self.value_dtype))
        self.agree(values, sums.free_energies, "`feature_energy` at a state differs from its free energy", "Look at it")
        self.done.append("feature energy")

    def data(self) -> None:
        """What data show: completed data show the data again, and their energy is at least the exact one."""
        energy, sums = self.energy, self.sums
        if data_space(energy) == observed_space(energy) or not small(data_space(energy)):
            return
        data = listed(data_space(energy))
        full = complete(energy, jax.random.fold_in(self.key, 6), data)
        self.agree(
            rows_of(visible_part(energy, full)), rows_of(data), "`visible_part` of completed data is not the data",
            "Look at `complete` and `visible_part`",
        )  # fmt: skip
        number = {row.tobytes(): i for i, row in enumerate(rows_of(data))}
        group = np.array([number[row.tobytes()] for row in rows_of(visible_part(energy, sums.observed))])
        exact = [-log_sum(-sums.free_energies[group == i]) for i in range(len(number))]
        bound = np.asarray(jax.jit(jax.vmap(data_energy_of(energy)))(data), float)
        self.require(
            (bound >= np.asarray(exact) - self.close * (1 + np.abs(exact))).all(),
            "`data_energy` lies below -log Σ exp(-F) over what data leave open", "It is that sum, or an upper bound of it",
        )  # fmt: skip
        self.done.append("data")

    def path(self) -> None:
        """From the base at β = 0 to the energy at β = 1."""
        energy, sums = self.energy, self.sums
        base = base_of(energy)
        if base is None or base.space != observed_space(energy):
            return

        observed = sums.observed  # listed here, outside the trace

        def free_energies(beta: Any) -> Any:
            return jax.vmap(free_energy_of(tempered(energy, base, beta)))(observed)

        betas = jnp.asarray([0.0, 0.375, 1.0], self.value_dtype)
        first, middle, last = np.asarray(jax.jit(jax.vmap(free_energies))(betas), float)
        start = np.asarray(jax.vmap(base)(sums.observed), float)
        volume = log_latent_volume(tempered(energy, base, betas[0]))
        what = "Look at `tempered`, `base` and `log_latent_volume`"
        self.agree(first, start - volume, "the path does not start at the base", what)
        self.agree(last, sums.free_energies, "the path does not end at the energy", what)
        if tempers_free_energy(energy):
            self.agree(
                middle, 0.625 * start + 0.375 * sums.free_energies,
                "`tempers_free_energy` is True, but the path is not (1 - β) F_0 + β F_1", what,
            )  # fmt: skip
        self.done.append("path")

    def sweeps(self) -> None:
        """Gibbs sweeps, of the energy's own or site by site, leave the distribution invariant."""
        energy, sums, gibbs = self.energy, self.sums, Gibbs()
        if gibbs.unsupported_reason(energy) is not None:
            return
        start_key, key, back_key = jax.random.split(jax.random.fold_in(self.key, 7), 3)
        picked = jax.random.choice(start_key, len(sums.chances), (DRAWS,), p=jnp.asarray(sums.chances))
        start = jax.tree.map(lambda x: x[picked], sums.observed)
        moved = jax.jit(lambda v: gibbs.step(energy, key, v)[0])(start)
        remedy = "Look at `gibbs` and `gibbs_sweep`: the sign and the temperature, and blocks that hold neighbours"
        self.distributed(moved, "states after one Gibbs sweep from the exact distribution", remedy)
        if sums.chances.max() < 0.9:
            self.require(
                (rows_of(moved) != rows_of(start)).any(),
                "a Gibbs sweep moves no chain",
                "Look at the acceptance of its moves",
            )
        back = jax.jit(lambda v: gibbs.reversal(energy, back_key, v))(start)
        if back is not None:
            self.distributed(back, "states after one reversed Gibbs sweep", "Look at `back` of the sweep")
        self.done.append("Gibbs sweep")

    def distributed(self, drawn: Any, what: str, remedy: str) -> None:
        counts = frequencies(self.sums.observed, drawn)
        self.require(counts is not None, f"{what} are not all in {observed_space(self.energy)}", remedy)
        p = p_value(np.asarray(counts), self.sums.chances)
        self.require(p > UNLIKELY, f"{what} do not have the distribution exp(-F) / Z (p = {p:.1g})", remedy)


def _stencil(f: Callable[[Any], np.ndarray], flat: Any, direction: Any) -> tuple[np.ndarray, float]:
    """The derivative of f along a direction by differences of four points, and how far that may be off, relatively."""
    h = float(jnp.finfo(flat.dtype).eps) ** 0.2 / (1 + float(jnp.abs(direction).max()))
    ahead, behind = (
        f(flat + h * direction) - f(flat - h * direction),
        f(flat + 2 * h * direction) - f(flat - 2 * h * direction),
    )
    return (8 * ahead - behind) / (12 * h), 1e3 * float(jnp.finfo(flat.dtype).eps) ** 0.7
