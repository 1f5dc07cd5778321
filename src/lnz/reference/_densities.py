"""Targets that are normalised by construction, log Z = 0: a funnel, many components, heavy tails.

Densities take points (..., dimension) as a NumPy or JAX array, and return an array of the same library.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

Points = Float[Any, "*batch dimension"]
Values = Float[Any, "*batch"]
Means = Float[Any, "components dimension"]

_LOG_2PI = math.log(2 * math.pi)


def funnel_log_density(x: Points, *, scale: float = 3.0) -> Values:
    """log N(x_1; 0, scale²) + Σ_{i>1} log N(x_i; 0, e^{x_1}): the width e^{x_1/2} varies from wide at one end to very narrow at the other.

    Source: Neal, Annals of Statistics 31, 705 (2003), with 10 dimensions and scale 3.
    """
    xp = x.__array_namespace__()
    v, rest = x[..., 0], x[..., 1:]
    n = rest.shape[-1]
    neck = -0.5 * (v / scale) ** 2 - math.log(scale) - 0.5 * (n + 1) * _LOG_2PI
    return neck - 0.5 * n * v - 0.5 * xp.exp(-v) * xp.sum(rest**2, axis=-1)


def mixture_means(components: int, dimension: int, *, half_width: float = 40.0, seed: int = 0) -> Points:
    """The means (components, dimension) of `gaussian_mixture_log_density`: uniform in a box, by numpy.random.default_rng(seed)."""
    return np.random.default_rng(seed).uniform(-half_width, half_width, size=(components, dimension))


def gaussian_mixture_log_density(x: Points, means: Means, *, scale: float = 1.0) -> Values:
    """log of the mean over k of N(x; μ_k, scale² I).

    Source: Midgley and others, ICLR 2023, with 40 components in [-40, 40]² of scale log(1 + e).
    """
    xp = x.__array_namespace__()
    squared = xp.sum(((x[..., None, :] - xp.asarray(means, dtype=x.dtype)) / scale) ** 2, axis=-1)
    count, dimension = means.shape
    constant = -math.log(count) - dimension * (math.log(scale) + 0.5 * _LOG_2PI)
    return _log_sum(xp, -0.5 * squared) + constant


def student_mixture_log_density(x: Points, means: Means) -> Values:
    """log of the mean over k of Π_i t_2(x_i - μ_ki), Student's t distribution with 2 degrees of freedom, (2 + u²)^{-3/2}.

    Source: Blessing and others, ICML 2024, with 10 components in [-10, 10]^d.
    """
    xp = x.__array_namespace__()
    each = -1.5 * xp.sum(xp.log(2 + (x[..., None, :] - xp.asarray(means, dtype=x.dtype)) ** 2), axis=-1)
    return _log_sum(xp, each) - math.log(len(means))


def _log_sum(xp, logs):
    top = xp.max(logs, axis=-1)
    return top + xp.log(xp.sum(xp.exp(logs - top[..., None]), axis=-1))
