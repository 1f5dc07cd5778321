"""Sequences side by side: what vmap makes of it is what a loop over sequences says, whatever is shared."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz.routes._exact.vmap_last_axis import alone, product, side_by_side


@pytest.mark.parametrize("rows", [1, 7, 11, 40])
@pytest.mark.parametrize("shared", [True, False])
def test_products(rows, shared):
    rng = np.random.default_rng(rows)
    table, a = rng.normal(size=(rows, 4, 1 if shared else 3)), rng.normal(size=(rows, 3))
    wanted = np.einsum("jkb,jb->kb", np.broadcast_to(table, (rows, 4, 3)), a)
    np.testing.assert_allclose(product(jnp.asarray(table), jnp.asarray(a)), wanted, rtol=1e-12)


@side_by_side
def powers(x, y, mask):
    """Of vectors (n, lanes) and a shift (m, lanes) that may be shared."""
    return jnp.where(mask, x, 0) ** 2 + y[:1], jnp.sum(x, 0) * jnp.sum(y, 0)


def powers_of_one(x, y, mask):
    return np.where(mask, x, 0) ** 2 + y[:1], np.sum(x) * np.sum(y)


@pytest.mark.parametrize(
    "axes",
    [(0, None, None), (None, 0, 0), (0, 0, 0), (1, None, 0)],
    ids=["shared", "shared vectors", "none shared", "another axis"],
)
def test_vmaps_in_vmaps(axes):
    rng = np.random.default_rng(0)
    shapes = [(3,), (2,), (3,)]
    shapes = [s if a is None else ((4, *s) if a == 0 else (*s, 4)) for s, a in zip(shapes, axes, strict=True)]
    x, y, mask = rng.normal(size=shapes[0]), rng.normal(size=(5, *shapes[1])), rng.random(shapes[2]) < 0.5
    inner = jax.vmap(lambda *given: alone(powers, *given), in_axes=axes)
    found = jax.vmap(inner, in_axes=(None, 0, None))(*map(jnp.asarray, (x, y, mask)))
    for i in range(5):
        for j in range(4):
            pick = lambda array, axis, j=j: array if axis is None else np.take(array, j, axis)  # noqa: E731
            one = powers_of_one(*(pick(array, axis) for array, axis in zip((x, y[i], mask), axes, strict=True)))
            for part, wanted in zip(found, one, strict=True):
                np.testing.assert_allclose(part[i, j], wanted, rtol=1e-12)


def chain_case(t, k, n, scale, seed):
    rng = np.random.default_rng(seed)
    e, w = rng.normal(size=(n, t, k)) * scale, rng.normal(size=(k, k)) * scale
    w[rng.random((k, k)) < 0.2] = -np.inf
    return jnp.asarray(e), jnp.asarray(w), jnp.asarray(rng.random((n, t)) < 0.8)


def test_recomputed_messages_are_the_messages():
    """11 nodes are three blocks, of which the last reaches back into the second; at 300 nats the sum needs logarithms."""

    def log_z(e, w, mask, route):
        return lnz.log_partition(lnz.LinearChain(e, w, mask=mask, holes="cut"), route=route).value

    def of(route):
        each = jax.vmap(jax.value_and_grad(lambda e, w, mask: log_z(e, w, mask, route), (0, 1)), in_axes=(0, None, 0))
        return jax.jit(each)

    kept, again = of(lnz.routes.ForwardBackward()), of(lnz.routes.ForwardBackward(recompute=True))
    impossible = 0
    for scale in (1.0, 300.0):
        case = chain_case(11, 3, 20, scale, 5)
        wanted, found = kept(*case), again(*case)
        impossible += int(jnp.sum(wanted[0] == -jnp.inf))
        for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-12)
    assert impossible < 20


def test_recomputing_next_to_nothing():
    route = lnz.routes.ForwardBackward(recompute=True)
    for t in (0, 1):
        chain = lnz.LinearChain(jnp.zeros((t, 2)), jnp.zeros((2, 2)))
        np.testing.assert_allclose(lnz.log_partition(chain, route=route).value, t * np.log(2), rtol=1e-12)


def test_many_labels():
    """34 labels are beyond what is written out: log Z and its slope by a loop in NumPy."""
    e, w, _ = chain_case(4, 34, 2, 1.0, 1)
    value = lambda e: lnz.log_partition(lnz.LinearChain(e, w)).value  # noqa: E731
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(value)))(e)
    for one, found, slope in zip(np.asarray(e), values, slopes, strict=True):
        a = b = np.zeros(34)
        forward, backward = [], []
        for t in range(4):
            a = one[t] if t == 0 else np.logaddexp.reduce(a[:, None] + np.asarray(w), 0) + one[t]
            forward.append(a)
            backward.append(b)
            b = np.logaddexp.reduce(np.asarray(w) + (b + one[3 - t])[None], 1)
        log_z = np.logaddexp.reduce(a)
        np.testing.assert_allclose(found, log_z, rtol=1e-12)
        wanted = np.exp(np.array(forward) + np.array(backward[::-1]) - log_z)
        np.testing.assert_allclose(slope, wanted, rtol=1e-10, atol=1e-14)
