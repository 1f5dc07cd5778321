"""The error of a negative phase's gradient against the exact gradient, where that is affordable."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities import data_space
from lnz._core.energy import ModelLike, as_energy
from lnz._core.numerics import check_whole_number
from lnz._core.packages import package
from lnz._core.route import Route
from lnz._core.spaces import State
from lnz.learning._gradients import as_arrays, cast, data_mean_and_gradient
from lnz.learning._negative import ExactPhase, NegativePhase


@dataclasses.dataclass(frozen=True)
class GradientError:
    """The error of a negative phase's gradient at constant parameters. Prints as a sentence; `plot` draws it.

    Attributes:
        exact: the exact gradient of the mean log-likelihood, all parameters in one row (p,).
        mean: the mean gradient of the phase over `repeats` independent repetitions, after 1, 2, … draws: shape (draws, p).
        variance: the variance of one draw over the repetitions, summed over the parameters: shape (draws,).
        repeats: the number of independent repetitions.
        phase: the name of the phase.
    """

    exact: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    repeats: int
    phase: str

    @property
    def bias(self) -> np.ndarray:
        """‖mean - exact‖ after each draw, (draws,), corrected for its variance: √max(0, ‖mean - exact‖² - variance / repeats)."""
        squares = ((self.mean - self.exact) ** 2).sum(axis=1) - self.variance / self.repeats
        return np.sqrt(np.maximum(squares, 0))

    @property
    def cosine(self) -> np.ndarray:
        """The cosine of the angle between the mean and the exact gradient after each draw: (draws,). At 0 or below, learning does not progress."""
        norms = np.linalg.norm(self.mean, axis=1) * np.linalg.norm(self.exact)
        return np.where(norms > 0, self.mean @ self.exact / np.where(norms > 0, norms, 1), np.nan)

    def __str__(self) -> str:
        return (
            f"{self.phase} after {len(self.variance):,} draws: bias {self.bias[-1]:.3g} and standard deviation {self.variance[-1] ** 0.5:.3g} of a "
            f"gradient of norm {np.linalg.norm(self.exact):.3g}; cosine of their angle {self.cosine[-1]:.3f}"
        )

    def plot(self, path: str | Path) -> None:
        """Draw bias and standard deviation against the number of draws, as a PNG."""
        matplotlib = package("matplotlib", "Drawing a picture")
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}):
            figure = Figure(figsize=(5.2, 3.4), layout="constrained")
            FigureCanvasAgg(figure)
            axes = figure.subplots()
            draws = np.arange(1, len(self.variance) + 1)
            axes.plot(draws, self.bias, marker="o", markersize=3, label="bias")
            axes.plot(draws, np.sqrt(self.variance), marker="o", markersize=3, label="standard deviation")
            axes.axhline(
                float(np.linalg.norm(self.exact)), linestyle=":", color="#7a8794", label="norm of the exact gradient"
            )
            axes.set(xlabel="draws at constant parameters", ylabel="nats", title=self.phase, ylim=(0, None))
            axes.legend()
            figure.savefig(path, format="png", dpi=150)


def gradient_error(
    energy: ModelLike,
    data: State,
    negative_phase: NegativePhase,
    *,
    draws: int = 10,
    repeats: int = 64,
    batch_size: int | None = None,
    route: Route | None = None,
    key: PRNGKeyArray,
) -> GradientError:
    """Bias and variance of a negative phase's gradient against ∇ mean log p_θ(data), at constant parameters.

    Each repetition begins with a fresh state of the phase and draws repeatedly under the same θ: persistent chains start at the energy's base,
    and their bias shows how fast they approach p_θ; that of contrastive divergence remains.

    Args:
        energy: an `Energy`, or any callable with a `space`, whose log Z is affordable exactly.
        data: observed states (n, *shape), the batch.
        negative_phase: any but `ExactPhase`.
        draws: draws per repetition.
        repeats: number of independent repetitions.
        batch_size: sets the number of chains where the phase does not set it; by default n.
        route: an exact route; by default `lnz.choose(energy)`.
        key: random key.

    Raises:
        ValueError: if the phase or every exact route does not support the energy, or the numbers are not integers of at least 1 (repeats: 2).

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> rbm = lnz.RBM(visible=4, hidden=2, key=jax.random.key(0))
        >>> found = lnz.learning.gradient_error(rbm, jnp.ones((10, 4)), lnz.learning.PersistentChains(), key=jax.random.key(1))
        >>> bool(found.cosine[-1] > 0.99)
        True
    """
    energy = as_energy(energy)
    check_whole_number("draws", draws)
    check_whole_number("repeats", repeats)
    if repeats < 2:
        raise ValueError("a variance needs at least 2 repeats")
    if isinstance(negative_phase, ExactPhase):
        raise ValueError("the exact negative phase has no error. Pass a phase that draws states")
    truth = ExactPhase(route)
    for phase in (truth, negative_phase):
        reason = phase.unsupported_reason(energy)
        if reason is not None:
            raise ValueError(f"{type(phase).__name__} does not support {type(energy).__name__}: {reason}")
    data = as_arrays(energy, data)
    data_space(energy).validate(data, batch=True)
    data = cast(energy, data)
    size = batch_size or jax.tree.leaves(data)[0].shape[0]
    exact, found = _gradients(
        energy, data, truth.chosen(energy), negative_phase, size, draws, jax.random.split(key, repeats)
    )
    exact, found = np.asarray(exact, np.float64), np.asarray(found, np.float64)
    return GradientError(
        exact, found.mean(axis=0), found.var(axis=0, ddof=1).sum(axis=1), repeats, type(negative_phase).__name__
    )


@eqx.filter_jit
def _gradients(energy: Any, data: State, route: Route, phase: NegativePhase, size: int, draws: int, keys: Array) -> Any:
    """The exact gradient (p,), and those of the phase after every draw of every repetition (repeats, draws, p)."""
    positive = data_mean_and_gradient(energy, data, None)[1]

    def row(negative: Any) -> Any:
        leaves = jax.tree.leaves(jax.tree.map(jnp.subtract, positive, negative))
        return jnp.concatenate([leaf.reshape(-1).astype(jnp.result_type(float)) for leaf in leaves])

    def repeat(key: PRNGKeyArray) -> Any:
        start, go = jax.random.split(key)

        def draw(state: Any, key: PRNGKeyArray) -> Any:
            _, negative, state, _ = phase.gradient(energy, state, data, None, key)
            return state, row(negative)

        return jax.lax.scan(draw, phase.init(energy, start, size), jax.random.split(go, draws))[1]

    return row(route.mean_gradient(energy, None)), jax.lax.map(repeat, keys)
