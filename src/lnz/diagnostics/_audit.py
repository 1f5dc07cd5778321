"""`lnz.audit`: all checks of one energy, in order; a check that cannot run does not prevent the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from lnz._core.capabilities import free_energy_of, observed_space
from lnz._core.energy import Energy, FunctionEnergy, ModelLike
from lnz._core.numerics import float64
from lnz._core.random import fast_key
from lnz._core.spaces import ArrayLike, Space
from lnz.diagnostics import _audit_derivative as audit_derivative
from lnz.diagnostics import _audit_interface as audit_interface
from lnz.diagnostics import _audit_states as audit_states
from lnz.diagnostics._audit_report import AuditReport, Check
from lnz.diagnostics._audit_subject import plain_promotion, subject


def audit(
    energy: ModelLike,
    *,
    space: Space | None = None,
    samples: ArrayLike = None,
    base: Energy | None = None,
    key: PRNGKeyArray | None = None,
) -> AuditReport:
    """Check ∇_θ log Z = E_{x~p_θ}[-∂_θ E_θ(x)] and its assumptions for this energy (THEORY T3, T4, T7, T10).

    The identity needs p̃ integrable near θ, differentiable in θ for almost every x, and an integrable bound of |∂p̃| (Leibniz); its
    estimates need a gradient with a mean and a variance, and states that are drawn from p_θ. The audit searches for failures of each:

    1. the derivative by the identity against differences of log Z itself, central and one-sided, in random and coordinate directions, by
       enumeration or quadrature, otherwise by bridge sampling on common random numbers;
    2. a support that moves with θ, and the boundary term that is then missing;
    3. Z = ∞, by rays and by the integral over a growing range;
    4. Pareto tails of ∂E: no mean, or no variance;
    5. parameters whose derivative is zero almost everywhere while E moves;
    6. mass that escapes to infinity (one-sided derivatives);
    7. NaN in gradients, and float32 against float64;
    8. sign, scalars, batches and randomness in E;
    9. given samples against p, and chains against each other;
    10. the curvature of log Z, and whether the model is an exponential family.

    Everything is computed in float64, whatever the caller's setting. A statistical check fails beyond 6 standard errors.

    Args:
        energy: an `Energy`, a callable with a `space`, or any callable together with `space`.
        space: where x lives, for a plain callable.
        samples: draws that should be from p_θ: (n, *shape), or (chains, n, *shape).
        base: an energy with exact samples that covers the space, for broad states where the default does not.
        key: a random key; by default a fixed one.

    Returns:
        An `AuditReport`: `print(report)` is a checklist, `report.passed` is True if no check failed.

    Raises:
        ValueError: where the energy cannot be called on a state of its space, or is not finite anywhere.
        TypeError: where there is no space, or the energy is not callable.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> def cut(theta, x):
        ...     return jnp.where(x[0] < theta, 0.0, jnp.inf)
        >>> uniform = lnz.FunctionEnergy(jax.tree_util.Partial(cut, jnp.asarray(1.3)), lnz.Box(0.0, 5.0, shape=1))
        >>> report = lnz.audit(uniform)
        >>> report.passed, report["support that moves with θ"].status
        (False, 'failed')
    """
    began = time.perf_counter()
    with float64(), plain_promotion(), np.errstate(all="ignore"):
        key = fast_key(0 if key is None else key)
        checks: list[Check] = []
        function, space = _callable(energy, space)
        name = f"{_name(energy)} on {space}"
        checks += audit_interface.interface(function, space, key)
        numbers: dict[str, Any] = {}
        if checks[0].status != "failed":
            model = energy if isinstance(energy, Energy) else FunctionEnergy(energy, space)
            checks += _model(model, samples, base, key, numbers)
    return AuditReport(name, tuple(checks), time.perf_counter() - began, numbers)


def _model(energy: Energy, given: Any, base: Energy | None, key: PRNGKeyArray, numbers: dict[str, Any]) -> list[Check]:
    own = None
    if given is not None:
        shape = jax.tree.leaves(observed_space(energy).struct)[0].shape
        array = given if isinstance(given, tuple) else np.asarray(given)
        several = not isinstance(array, tuple) and array.ndim == len(shape) + 2
        rows = array.reshape(-1, *array.shape[2:]) if several and not isinstance(array, tuple) else array
        observed_space(energy).validate(rows, batch=True)
        dtypes = observed_space(energy).struct
        own = jax.tree.map(lambda leaf, struct: jax.numpy.asarray(leaf).astype(struct.dtype), rows, dtypes)
    found = subject(energy, states=own, base=base, key=key)
    if (
        found.states is not None
        and not np.isfinite(np.asarray(audit_derivative.energies(found.energy, found.states))).any()
    ):
        raise ValueError("E is NaN or infinite at every state drawn: check the parameters and the space")
    jobs: list[tuple[str, Callable[[], Any]]] = [
        ("finite Z", lambda: audit_states.finite_z(found, numbers)),
        (audit_derivative.GRADIENT, lambda: audit_derivative.derivative(found, numbers)),
        ("support that moves with θ", lambda: audit_derivative.support(found, numbers)),
        ("dead steps", lambda: audit_derivative.dead_steps(found)),
        ("mean and variance of ∂E", lambda: audit_states.tails(found, numbers)),
        ("hard constraints", lambda: audit_states.precision(found)),
        ("samples against p", lambda: audit_states.samples(found, given, numbers)),
    ]
    checks: list[Check] = []
    for name, job in jobs:
        try:
            result = job()
        except (ValueError, TypeError, NotImplementedError, jax.errors.JAXTypeError) as error:
            result = Check(name, "untested", " ".join(str(error).split())[:200])
        checks += result if isinstance(result, list) else [result]
    return checks


def _callable(energy: Any, space: Space | None) -> tuple[Callable[..., Any], Space]:
    if isinstance(energy, Energy):
        return free_energy_of(energy), observed_space(energy)
    space = getattr(energy, "space", None) if space is None else space
    if not callable(energy):
        raise TypeError(
            f"an energy must be a callable that maps one state to one number, but got {type(energy).__name__}"
        )
    if not isinstance(space, Space):
        raise TypeError("this energy has no space: pass space=…, such as lnz.Real(2) or lnz.Spin(10)")
    return energy, space


def _name(energy: Any) -> str:
    if isinstance(energy, FunctionEnergy):
        energy = energy.function
    energy = getattr(energy, "func", energy)
    return getattr(energy, "__name__", type(energy).__name__)
