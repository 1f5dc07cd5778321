"""PyMC's models: their log joint density in unconstrained coordinates, as PyTensor compiles it to JAX."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lnz._core.numerics import float64
from lnz._evidence.posterior import Part, Posterior, joined, split

_IMPROPER = ("Flat", "HalfFlat")


class PyMCPosterior(Posterior):
    """A PyMC model.

    Attributes:
        log_density: from the values of PyMC's value variables to the log joint density, Jacobians included.
        outputs: from these to the variables of `names` in their own space.
        names: of latent variables and deterministics.
    """

    log_density: Callable[..., Any] = eqx.field(static=True)
    outputs: Callable[..., Any] = eqx.field(static=True)
    forward: Callable[..., Any] = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)
    latent: tuple[str, ...] = eqx.field(static=True)
    _parts: tuple[Part, ...] = eqx.field(static=True)

    @property
    def parts(self) -> tuple[Part, ...]:
        return self._parts

    @property
    def latent_names(self) -> tuple[str, ...]:
        return self.latent

    def __call__(self, x: Float[Array, " d"]) -> Array:
        return -jnp.asarray(self.log_density(list(split(x, self._parts).values()))).astype(x.dtype)

    def named(self, z: Float[Array, " d"]) -> dict[str, Array]:
        found = self.outputs(*split(z, self._parts).values())
        return {name: jnp.asarray(value) for name, value in zip(self.names, found, strict=True)}

    def unconstrained(self, values: dict[str, Array]) -> Float[Array, " d"]:
        found = self.forward(*(jnp.asarray(values[name]) for name in self.latent))
        return joined({part.name: x for part, x in zip(self._parts, found, strict=True)}, self._parts)


def pymc_posterior(model: Any) -> PyMCPosterior:
    """The posterior of a PyMC model.

    Raises:
        ValueError: for a model without latent or observed variables, with discrete variables or improper priors, or that PyTensor cannot compile
            to JAX.
    """
    if not model.observed_RVs and not model.potentials:
        raise ValueError(
            "the model has no observed variables, so it has no evidence: give the data to a variable by observed=…"
        )
    for variable in model.free_RVs:
        if type(variable.owner.op).__name__.removesuffix("RV") in _IMPROPER:
            raise ValueError(
                f"variable {variable.name!r} has an improper prior (pm.{type(variable.owner.op).__name__.removesuffix('RV')}), so the evidence is "
                "undefined: it is known up to an arbitrary factor only. Give it a proper prior, such as a wide Normal"
            )
    if model.discrete_value_vars:
        name = model.values_to_rvs[model.discrete_value_vars[0]].name
        raise ValueError(
            f"variable {name!r} is discrete, and PyMC's models are not enumerated: sum it out, for example by pymc_extras.marginalize, or write the "
            "model in NumPyro"
        )
    with pytensor_settings():
        from pymc.sampling.jax import get_jaxified_graph, get_jaxified_logp

        start = model.initial_point()
        parts = tuple(Part(variable.name, np.shape(start[variable.name])) for variable in model.value_vars)
        values = {variable.name for variable in model.value_vars}
        shown = [
            v
            for v in model.unobserved_value_vars
            if v.name not in values or model.rvs_to_transforms[model.values_to_rvs[v]] is None
        ]
        try:
            log_density = get_jaxified_logp(model)
            outputs = get_jaxified_graph(inputs=model.value_vars, outputs=shown)
        except NotImplementedError as error:
            line = " ".join(str(error).split("\n")[0].split())
            raise ValueError(
                f"PyTensor cannot compile the model to JAX: {line}. Write this part in other operations"
            ) from error
        return PyMCPosterior(
            log_density=log_density,
            outputs=outputs,
            forward=functools.partial(_forward, model),
            names=tuple(v.name for v in shown),
            latent=tuple(variable.name for variable in model.free_RVs),
            _parts=parts,
        )


def _forward(model: Any, *values: Array) -> list[Array]:
    """The values of PyMC's value variables from those of its variables."""
    from pymc.sampling.jax import get_jaxified_graph

    inputs = [variable.type(name=variable.name) for variable in model.free_RVs]
    known = dict(zip(model.free_RVs, inputs, strict=True))
    outputs = []
    for variable in model.free_RVs:
        transform = model.rvs_to_transforms[variable]
        if transform is None:
            outputs.append(known[variable])
            continue
        from pytensor.graph.replace import clone_replace

        whole = transform.forward(known[variable], *variable.owner.inputs)
        outputs.append(clone_replace([whole], replace=known)[0])
    forward: Any = get_jaxified_graph(inputs=inputs, outputs=outputs)
    return forward(*values)


@contextlib.contextmanager
def pytensor_settings() -> Iterator[None]:
    """JAX as PyTensor needs it: float64 where that is PyTensor's `floatX`. The user's settings, which PyMC's import changes, stay as they are."""
    import pytensor

    before, flags = bool(jax.config.read("jax_enable_x64")), os.environ.get("XLA_FLAGS")
    jax.devices()  # the import below asks for a hundred devices of a JAX that has not begun
    import pymc.sampling.jax  # noqa: F401  # pyright: ignore[reportMissingImports]

    os.environ.pop("XLA_FLAGS") if flags is None else os.environ.__setitem__("XLA_FLAGS", flags)
    jax.config.update("jax_enable_x64", before)
    config: Any = pytensor.config  # pyright: ignore[reportPrivateImportUsage]
    with float64() if config.floatX == "float64" else contextlib.nullcontext():
        yield
