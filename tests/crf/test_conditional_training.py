"""From a network to log-potentials, an objective, and labels: heads, tables, calibration, and training on small grids with snakes in them."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lnz

FEATURES, K = 7, 3
GRID = lnz.crf.Grid((3, 4))


def filled(module, seed=0):
    """The module with random weights in the place of those that start at 0."""
    leaves, tree = jax.tree.flatten(module)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(size=leaf.shape)) for leaf in leaves])


def test_a_pairwise_head_joins_both_ends_in_order_and_copies_no_features_to_edges():
    head = filled(lnz.crf.PairwiseHead(FEATURES, K, hidden=5, groups=2, key=jax.random.key(0)))
    x = np.random.default_rng(1).normal(size=(3, 4, FEATURES))
    got, flat = head(jnp.asarray(x), GRID), x.reshape(12, -1)
    group = np.repeat([0, 1], GRID.groups)
    for e, (i, j) in enumerate(GRID.edges):
        g = group[e]
        inner = np.maximum(flat[i] @ head.first[g] + flat[j] @ head.second[g] + head.bias[g], 0)
        want = np.einsum("h,hjk->jk", inner, head.out[g]) + head.out_bias[g]
        np.testing.assert_allclose(got[e], want, atol=1e-10)
    graph = lnz.crf.Graph(5, [(0, 1), (1, 2), (3, 4), (2, 4), (0, 4), (1, 3)])
    one = lnz.crf.PairwiseHead(FEATURES, K, hidden=5, key=jax.random.key(0))
    inside = jax.make_jaxpr(lambda x: one(x, graph))(jnp.ones((5, FEATURES)))
    assert (6, FEATURES) not in {v.aval.shape for step in inside.jaxpr.eqns for v in step.outvars}
    with pytest.raises(ValueError, match="2 groups"):
        head(x, lnz.crf.Grid((3, 4), [(0, 1)]))
    with pytest.raises(ValueError, match="at least 1"):
        lnz.crf.PairwiseHead(FEATURES, K, hidden=0, key=jax.random.key(0))


def test_padding_may_hold_anything():
    x, y = np.random.default_rng(2).normal(size=(3, 4, FEATURES)), np.zeros((3, 4), int)
    mask = np.ones((3, 4), bool)
    mask[:, 3] = mask[2] = False
    heads = filled(
        (
            lnz.crf.UnaryHead(FEATURES, K, hidden=4, key=jax.random.key(0)),
            lnz.crf.PairwiseHead(FEATURES, K, hidden=4, groups=2, key=jax.random.key(1)),
        )
    )

    @jax.jit
    @jax.value_and_grad
    def loss(heads, x, y):
        field = lnz.RandomField(GRID, heads[0](x, mask=mask), heads[1](x, GRID, mask=mask), mask=jnp.asarray(mask))
        return lnz.crf.Piecewise(unaries="inside").loss(field, y)

    want = loss(heads, x, y)
    got = loss(heads, np.where(mask[..., None], x, np.nan), np.where(mask, y, -100))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


def test_any_network_will_do():
    """Flax NNX, Equinox and a plain function with the same weights: the same loss and gradient."""
    rng = np.random.default_rng(3)
    weight, x, y = rng.normal(size=(FEATURES, K)), rng.normal(size=(3, 4, FEATURES)), rng.integers(0, K, (3, 4))
    of_nnx = nnx.Linear(FEATURES, K, use_bias=False, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    of_nnx.kernel[...] = jnp.asarray(weight)
    linear = eqx.nn.Linear(FEATURES, K, use_bias=False, key=jax.random.key(0))
    of_eqx = eqx.tree_at(lambda m: m.weight, linear, jnp.asarray(weight.T))

    def loss(unary):
        return lnz.crf.PseudoLikelihood().loss(
            lnz.RandomField(GRID, unary, lnz.crf.potts_tables(0.5, K)), jnp.asarray(y)
        )

    value, gradient = jax.value_and_grad(lambda w: loss(x @ w))(jnp.asarray(weight))
    got, by_nnx = nnx.value_and_grad(lambda net: loss(net(jnp.asarray(x))))(of_nnx)
    assert float(got) == pytest.approx(float(value), abs=1e-9)
    np.testing.assert_allclose(by_nnx["kernel"][...], gradient, atol=1e-9)
    got, by_eqx = eqx.filter_value_and_grad(lambda net: loss(jax.vmap(jax.vmap(net))(jnp.asarray(x))))(of_eqx)
    assert float(got) == pytest.approx(float(value), abs=1e-9)
    np.testing.assert_allclose(by_eqx.weight.T, gradient, atol=1e-9)


def test_tables_of_few_numbers():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 5, K, 2))
    np.testing.assert_allclose(lnz.crf.low_rank_tables(a, b), np.einsum("ejr,ekr->ejk", a, b), atol=1e-12)
    np.testing.assert_array_equal(lnz.crf.potts_tables(2.0, 2), 2 * np.eye(2))
    features, widths, pairs = rng.normal(size=(3, 4, 2)), np.array([0.5, 2.0]), rng.normal(size=(K, K))
    rows = features.reshape(-1, 2)
    apart = ((rows[GRID.edges[:, 0]] - rows[GRID.edges[:, 1]]) / widths) ** 2
    want = np.exp(-apart.sum(1) / 2)[:, None, None] * pairs
    np.testing.assert_allclose(lnz.crf.gaussian_tables(features, GRID, widths, pairs), want, atol=1e-12)
    for build, words in (
        (lambda: lnz.crf.low_rank_tables(a, b[..., :1]), "the same shape"),
        (lambda: lnz.crf.gaussian_tables(rows, GRID, widths, pairs), "features must have shape"),
        (lambda: lnz.crf.gaussian_tables(features, GRID, np.ones(3), pairs), "bandwidths"),
        (lambda: lnz.crf.gaussian_tables(features, GRID, 1.0, pairs[0]), "compatibility"),
    ):
        with pytest.raises(ValueError, match=words):
            build()


def test_calibration_finds_the_scales_that_the_data_have():
    """Scales of the unaries, of two groups and of a factor: the moments agree where it ends, and the truth is near."""
    structure = lnz.crf.Graph(4, [(0, 1), (1, 2), (2, 3)], factors=[(0, 1, 3)], groups=[2, 1])
    rng, count, truth = np.random.default_rng(5), 3000, np.array([0.5, 2.0, 0.7, 1.5])
    x, pairs, factor = rng.normal(size=(count, 4, 2)), rng.normal(size=(3, 2, 2)), rng.normal(size=(2, 2, 2))
    states = np.array(list(itertools.product(range(2), repeat=4)))
    of_edges = [pairs[e, states[:, i], states[:, j]] for e, (i, j) in enumerate(structure.edges)]
    statistics = np.stack(
        np.broadcast_arrays(
            x[:, np.arange(4), states].sum(-1),
            of_edges[0] + of_edges[1],
            of_edges[2],
            factor[tuple(states[:, [0, 1, 3]].T)],
        )
    )  # (4, count, 16)

    def law(scales):
        p = np.exp(np.tensordot(scales, statistics, 1))
        return p / p.sum(1, keepdims=True)

    chosen = (law(truth).cumsum(1) < rng.random((count, 1))).sum(1)
    scales = lnz.crf.calibrate(
        lambda x: lnz.RandomField(structure, x, pairs, factors=[factor]),
        x,
        states[chosen],
        route=lnz.routes.Enumeration(),
    )
    found = np.concatenate([scales.unary[None], scales.groups, scales.factors])
    np.testing.assert_allclose(found, truth, atol=0.25)
    gap = statistics[:, np.arange(count), chosen].mean(1) - (law(found) * statistics).sum(2).mean(1)
    np.testing.assert_allclose(gap, 0, atol=1e-4)
    hard = lnz.crf.Scales(jnp.asarray(2.0), jnp.ones(1), jnp.ones(0))(
        lnz.RandomField(lnz.crf.Chain(2), np.ones((2, 2)), allowed=np.array([True, False]))
    )
    np.testing.assert_array_equal(hard.unary, [[2, -np.inf]] * 2)
    with pytest.raises(ValueError, match="as many labels as inputs"):
        lnz.crf.calibrate(lambda x: lnz.RandomField(structure, x, pairs, factors=[factor]), x, states[chosen][:-1])


def snakes(count, length, rng, shape=(5, 5)):
    """Grids of several shapes with a snake in each: colours tell the way to its next cell, labels how far along a cell lies."""
    ways = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    x, y = np.zeros((count, *shape), int), np.zeros((count, *shape), int)
    mask = np.zeros((count, *shape), bool)
    for n in range(count):
        h, w = rng.integers(3, shape[0] + 1), rng.integers(3, shape[1] + 1)
        mask[n, :h, :w] = True
        path = []
        while len(path) < length:
            path, way = [(int(rng.integers(h)), int(rng.integers(w)))], []
            while len(path) < length:
                free = [
                    k
                    for k, (a, b) in enumerate(ways)
                    if 0 <= path[-1][0] + a < h
                    and 0 <= path[-1][1] + b < w
                    and (path[-1][0] + a, path[-1][1] + b) not in path
                ]
                if not free:
                    break
                way.append(int(rng.choice(free)))
                path.append((path[-1][0] + ways[way[-1]][0], path[-1][1] + ways[way[-1]][1]))
        for step, cell in enumerate(path):
            y[n][cell] = step + 1
            x[n][cell] = [*way, 4][step] + 1
    return x, y, mask


def test_a_network_learns_snakes_by_their_pairs():
    """Colours alone cannot tell the second cell from the third; pairs conditioned on colours can."""
    length, rng = 4, np.random.default_rng(6)
    grid = lnz.crf.Grid((5, 5))
    x, y, mask = snakes(120, length, rng)
    features = jnp.eye(6)[x]
    one, two = jax.random.split(jax.random.key(0))
    start = (
        lnz.crf.UnaryHead(6, length + 1, key=one),
        lnz.crf.PairwiseHead(6, length + 1, hidden=24, groups=2, key=two),
    )
    optimizer = optax.adam(0.03)

    def field(heads, x, mask):
        return lnz.RandomField(grid, heads[0](x, mask=mask), heads[1](x, grid, mask=mask), mask=mask)

    @jax.jit
    def fitted(heads):
        def loss(heads):
            nats = jax.vmap(lambda x, y, m: lnz.crf.Piecewise(unaries="inside").loss(field(heads, x, m), y))
            return nats(features[:90], y[:90], mask[:90]).mean()

        def step(carry, _):
            heads, state = carry
            value, gradient = jax.value_and_grad(loss)(heads)
            with jax.numpy_dtype_promotion("standard"):  # optax's Adam
                updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(heads, updates), state), value

        return jax.lax.scan(step, (heads, optimizer.init(heads)), None, length=150)

    (heads, _), losses = fitted(start)
    assert losses[-1] < 0.3 * losses[0]
    route = lnz.routes.BeliefPropagation(schedule="parallel", damping=0.3, max_sweeps=50, tolerance=1e-4)
    decode = jax.jit(jax.vmap(lambda x, m: lnz.crf.mpm_state(field(heads, x, m), route=route)))
    right = (np.asarray(decode(features[90:], mask[90:])) == y[90:])[mask[90:] & (y[90:] > 0)]
    alone = np.asarray(heads[0](features[90:])).argmax(-1)
    assert right.mean() > 0.9
    assert right.mean() > 0.2 + (alone == y[90:])[mask[90:] & (y[90:] > 0)].mean()
