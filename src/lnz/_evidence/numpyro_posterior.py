"""NumPyro's models: their log joint density in unconstrained coordinates, by NumPyro's own functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.frozen import is_traced
from lnz._core.packages import package
from lnz._evidence.posterior import Part, Posterior, joined, split

_TRIED = 16  # draws of the prior at which the support of data is looked at


class NumPyroPosterior(Posterior):
    """A NumPyro model with its arguments.

    Attributes:
        args: of the model; their float arrays are parameters of the energy.
        kwargs: likewise.
        model: the model; with discrete sites, under NumPyro's enumeration.
        plain: the model as it was given.
        observed: the names of its observed sites.
        enumerated: whether discrete sites are summed out.
        watched: the observed sites whose support depends on latent ones, so that data may lie outside.
    """

    args: Any
    kwargs: Any
    model: Callable[..., Any] = eqx.field(static=True)
    plain: Callable[..., Any] = eqx.field(static=True)
    _parts: tuple[Part, ...] = eqx.field(static=True)
    observed: tuple[str, ...] = eqx.field(static=True)
    enumerated: bool = eqx.field(static=True)
    watched: tuple[str, ...] = eqx.field(static=True)

    @property
    def parts(self) -> tuple[Part, ...]:
        return self._parts

    def __call__(self, x: Float[Array, " d"]) -> Array:
        sites: dict[str, Any] = {}
        energy = self._potential(_recorded(self.model, sites), x)
        latent = [_possible(sites[part.name]) for part in self._parts]
        # Without validation, NumPyro's densities do not look whether data lie in their support.
        watched = [jnp.all(sites[name]["fn"].support(jnp.asarray(sites[name]["value"]))) for name in self.watched]
        possible = jnp.all(jnp.stack([*latent, *watched])) if latent else jnp.asarray(True)
        return jnp.where(possible, energy, jnp.inf)

    def prior_energy(self, z: Float[Array, " d"]) -> Array:
        from numpyro import handlers

        return self._potential(handlers.block(self.model, hide=list(self.observed)), z)

    def _potential(self, model: Callable[..., Any], z: Array) -> Array:
        from numpyro.infer.util import potential_energy

        values = split(z, self._parts)
        return jnp.asarray(potential_energy(model, self.args, self.kwargs, values, enum=self.enumerated)).astype(
            z.dtype
        )

    def named(self, z: Float[Array, " d"]) -> dict[str, Array]:
        from numpyro import handlers
        from numpyro.infer.util import constrain_fn

        model = handlers.seed(self.plain, jax.random.key(0))
        found = constrain_fn(
            model, self.args, self.kwargs, split(z, self._parts), return_deterministic=not self.enumerated
        )
        return {name: jnp.asarray(value) for name, value in found.items()}

    def unconstrained(self, values: dict[str, Array]) -> Float[Array, " d"]:
        known = {part.name: values[part.name] for part in self._parts}
        trace = traced(_given(self.plain, known), jax.random.key(0), self.args, self.kwargs)
        return joined({name: _to_reals(trace[name]["fn"]).inv(value) for name, value in known.items()}, self._parts)

    def prior_draw(self, key: PRNGKeyArray) -> Float[Array, " d"] | None:
        try:
            trace = traced(self.plain, key, self.args, self.kwargs)
        except NotImplementedError:
            return None
        sites = {part.name: trace[part.name] for part in self._parts}
        return joined({name: _to_reals(site["fn"]).inv(site["value"]) for name, site in sites.items()}, self._parts)


def traced(model: Callable[..., Any], key: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The sites of one run of the model."""
    from numpyro import handlers

    return handlers.trace(handlers.seed(model, key)).get_trace(*args, **kwargs)


def _recorded(model: Callable[..., Any], sites: dict[str, Any]) -> Callable[..., Any]:
    """The model, which leaves its sites in a dict when it runs."""
    from numpyro import handlers

    def run(*args: Any, **kwargs: Any) -> Any:
        with handlers.trace() as trace:
            out = model(*args, **kwargs)
        sites.update(trace)
        return out

    return run


def _possible(site: Any) -> Array:
    """Whether a latent value is a number of its support, and none that overflow or underflow left there: where a bijection saturates in floating
    point, densities stay as they are or become NaN."""
    from numpyro.distributions import constraints as c

    value, support = jnp.asarray(site["value"]), site["fn"].support
    inside = jnp.all(jnp.isfinite(value))
    if isinstance(support, tuple(map(type, (c.positive, c.softplus_positive, c.simplex, c.positive_ordered_vector)))):
        inside &= jnp.all(value > jnp.finfo(value.dtype).tiny)
    if isinstance(support, tuple(map(type, (c.ordered_vector, c.positive_ordered_vector)))):
        inside &= jnp.all(value[..., 1:] > value[..., :-1])
    if isinstance(support, tuple(map(type, (c.corr_cholesky, c.corr_matrix)))):
        root = value if isinstance(support, type(c.corr_cholesky)) else jnp.linalg.cholesky(value)
        least = jnp.sqrt(3 * jnp.finfo(value.dtype).eps)  # correlations are at most 1 - eps
        inside &= jnp.all(jnp.diagonal(root, axis1=-2, axis2=-1) > least)
    return inside


def _given(model: Callable[..., Any], values: dict[str, Array]) -> Callable[..., Any]:
    from numpyro import handlers

    return handlers.substitute(model, data=values)


def _to_reals(distribution: Any) -> Any:
    """The bijection from unconstrained values to the support of a distribution."""
    from numpyro.distributions import biject_to

    return biject_to(distribution.support)


def numpyro_posterior(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> NumPyroPosterior:
    """The posterior of a NumPyro model.

    Raises:
        ModuleNotFoundError: where NumPyro is not installed, or a package that its enumeration needs.
        ValueError: for a model without latent or observed sites, data of another shape or outside of every support, improper priors, discrete
            sites that cannot be enumerated, supports without a bijection, subsampled plates and parameters.
    """
    package("numpyro", "lnz.evidence of a function without a prior, a NumPyro model,")
    args, kwargs = jax.tree.map(_as_array, (args, kwargs))
    found = _looked_at(model, args, kwargs)
    enumerated = model if found.discrete is None else _enumerated(model, found)
    watched = tuple(name for name in found.doubtful if _is_outside_at_times(name, model, args, kwargs))
    summed = found.discrete is not None
    return NumPyroPosterior(args, kwargs, enumerated, model, found.parts, found.observed, summed, watched)


class _Structure(NamedTuple):
    """What one run of a model shows: its variables, observed sites, a discrete latent site, observed sites whose data may lie outside the support of
    their distribution, and the leftmost dimension of its plates."""

    parts: tuple[Part, ...]
    observed: tuple[str, ...]
    discrete: str | None
    doubtful: tuple[str, ...]
    leftmost: int


def _as_array(leaf: Any) -> Any:
    """Data frames and columns as arrays; all else as it is."""
    return np.asarray(leaf) if hasattr(leaf, "__array__") and not eqx.is_array(leaf) else leaf


def _looked_at(model: Callable[..., Any], args: Any, kwargs: Any) -> _Structure:
    """The structure of a model, from a run in which nothing is computed: values that depend on latent sites are abstract."""
    from numpyro import handlers
    from numpyro.infer import init_to_uniform

    found: list[_Structure] = []

    def run(key: PRNGKeyArray) -> None:
        # Distributions that cannot be drawn have a value all the same.
        placed = handlers.substitute(handlers.seed(model, key), substitute_fn=init_to_uniform())
        found.append(_structure(handlers.trace(placed).get_trace(*args, **kwargs)))

    try:
        jax.eval_shape(run, jax.random.key(0))
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        line = str(error).split("\n")[0]
        raise ValueError(
            f"the model cannot be traced by JAX: {line} Write what depends on latent variables in jax.numpy, without NumPy, SciPy, `if` and `while`"
        ) from error
    except (TypeError, ValueError) as error:
        line = " ".join(str(error).split())
        if "ncompatible shapes" in line or "broadcast" in line:
            raise ValueError(
                f"the model does not run on these data: {line.rstrip('.')}. Check the shapes of the data against the plates and parameters"
            ) from error
        raise
    return found[0]


def _structure(trace: dict[str, Any]) -> _Structure:
    sites = {name: site for name, site in trace.items() if site["type"] == "sample"}
    observed = {name: site for name, site in sites.items() if site["is_observed"]}
    latent = {name: site for name, site in sites.items() if not site["is_observed"]}
    _refuse_structure(trace, sites, observed)
    for name, site in observed.items():
        _refuse_shape(name, site)
    discrete = {name: site for name, site in latent.items() if site["fn"].support.is_discrete}
    for name, site in latent.items():
        _refuse_prior(name, site["fn"], discrete=name in discrete)
    dims = [frame.dim for site in sites.values() for frame in site["cond_indep_stack"] if frame.dim is not None]
    return _Structure(
        parts=tuple(Part(name, _reals_of(name, site)) for name, site in latent.items() if name not in discrete),
        observed=tuple(observed),
        discrete=next(iter(discrete), None),
        doubtful=tuple(name for name, site in observed.items() if not _inside(site)),
        leftmost=min(dims, default=0),
    )


def _refuse_structure(trace: dict[str, Any], sites: dict[str, Any], observed: dict[str, Any]) -> None:
    if not sites:
        raise ValueError(
            "the function has no NumPyro sample sites: give the prior of a log likelihood by prior=…, or -log p(x, y) as lnz.FunctionEnergy"
        )
    if not observed:
        raise ValueError(
            "the model has no observed sites, so it has no evidence: pass the data, and give them to a site by obs=…"
        )
    for name, site in trace.items():
        if site["type"] == "param":
            raise ValueError(
                f"site {name!r} is a numpyro.param, a number to be optimised: make it a constant, or give it a prior by numpyro.sample"
            )
        if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
            raise ValueError(
                f"plate {name!r} takes {site['args'][1]:,} of {site['args'][0]:,} data at random, so the likelihood is itself an estimate: leave out "
                "subsample_size"
            )


def _refuse_shape(name: str, site: Any) -> None:
    """Refuse data that a distribution of more variables would count more than once."""
    fn, shape = site["fn"], np.shape(site["value"])
    batch = shape[: len(shape) - fn.event_dim]
    if (
        shape[len(shape) - fn.event_dim :] != tuple(fn.event_shape)
        or np.broadcast_shapes(batch, fn.batch_shape) != batch
    ):
        raise ValueError(
            f"the data of site {name!r} have shape {shape}, but its distribution has shape {tuple(fn.shape())}: they would be counted more "
            "than once. Give data of the distribution's shape"
        )


def _parent(fn: Any) -> Any:
    """The distribution that expands, masks or joins another; None for one of its own."""
    from numpyro import distributions as dist

    wrappers = (dist.ExpandedDistribution, dist.Independent, dist.MaskedDistribution)
    return fn.base_dist if isinstance(fn, wrappers) else None


def _refuse_prior(name: str, fn: Any, *, discrete: bool) -> None:
    from numpyro import distributions as dist

    inner = fn
    while (below := _parent(inner)) is not None:
        inner = below
    if isinstance(inner, dist.ImproperUniform):
        raise ValueError(
            f"site {name!r} has an improper prior (ImproperUniform), so the evidence is undefined: it is known up to an arbitrary factor only. Give "
            "it a proper prior, such as a wide Normal"
        )
    if isinstance(inner, dist.Delta):
        raise ValueError(f"site {name!r} has a Delta prior, which has no density: use numpyro.deterministic")
    if discrete and not fn.has_enumerate_support:
        raise ValueError(
            f"site {name!r} is discrete ({type(inner).__name__}) with infinitely many values, which cannot be enumerated: sum it out in the model, "
            "or give it finitely many"
        )


def _reals_of(name: str, site: Any) -> tuple[int, ...]:
    """The shape of a site's unconstrained value."""
    fn = site["fn"]
    try:
        return tuple(_to_reals(fn).inverse_shape(np.shape(site["value"])))
    except NotImplementedError:
        raise ValueError(
            f"site {name!r} has the support {fn.support}, which NumPyro does not map to the reals: write it in other variables"
        ) from None


def _enumerated(model: Callable[..., Any], found: _Structure) -> Callable[..., Any]:
    """The model whose discrete sites are summed out by NumPyro."""
    package("funsor", f"Summing out the discrete site {found.discrete!r}")
    from numpyro.contrib.funsor import config_enumerate, enum

    return enum(config_enumerate(model), found.leftmost - 1)


def _inside(site: Any) -> bool:
    """Whether data are known to lie in the support of their distribution; masked ones do."""
    from numpyro import distributions as dist

    fn = site["fn"]
    if any(isinstance(each, dist.MaskedDistribution | dist.Unit) for each in _chain_of(fn)):
        return True
    try:
        inside = fn.support(np.asarray(site["value"]))
    except jax.errors.TracerArrayConversionError:
        return False
    return not is_traced(inside) and bool(np.all(np.asarray(inside)))


def _chain_of(fn: Any) -> list[Any]:
    found = [fn]
    while (below := _parent(found[-1])) is not None:
        found.append(below)
    return found


def _is_outside_at_times(name: str, model: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    """Whether data may lie outside the support of their distribution; raises ValueError where they do wherever the prior goes."""
    found = [traced(model, jax.random.key(i), args, kwargs)[name] for i in range(_TRIED)]
    if any(map(_inside, found)):
        return not _is_fixed(found)
    site = found[0]
    if missing := int(np.isnan(np.asarray(site["value"], float)).sum()):
        raise ValueError(
            f"the data of site {name!r} have {missing:,} NaN: leave these out, or mask them by numpyro.handlers.mask"
        )
    bad = ~np.asarray(site["fn"].support(np.asarray(site["value"])))
    raise ValueError(
        f"{int(bad.sum()):,} of {bad.size:,} data of site {name!r} lie outside the support of {type(site['fn']).__name__} at all of {_TRIED} draws "
        "from the prior. Check the data and their units"
    )


def _is_fixed(sites: list[Any]) -> bool:
    """Whether the ends of a support are the same in all runs."""
    ends = [[np.asarray(leaf) for leaf in jax.tree.leaves(site["fn"].support)] for site in sites]
    return all(all(np.array_equal(a, b) for a, b in zip(each, ends[0], strict=True)) for each in ends)
