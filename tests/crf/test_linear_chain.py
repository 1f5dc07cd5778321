"""log Z and gradient of linear chains against every labelling listed in NumPy."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from crf.chain_cases import Chain, exists, listed, random_chain, stacked
from lnz._core.numerics import float64
from lnz.routes._exact.forward_backward import _most, chain_sums

T, K = 7, 4


@functools.cache
def summed(holes: str):
    """log Z, its gradient with respect to what the user gave, and log P of labels, a batch at a time."""

    def one(tables, rest, labels):
        chain = lnz.LinearChain(holes=holes, **tables, **rest)  # pyright: ignore[reportArgumentType]
        return lnz.log_partition(chain).value, lnz.crf.log_probability(chain, labels)

    return jax.jit(jax.vmap(jax.value_and_grad(one, has_aux=True)))


def split(chains: Chain, dtype):
    given = chains.arguments()
    floats = {name: jnp.asarray(v, dtype) for name, v in given.items() if np.issubdtype(v.dtype, np.floating)}
    return floats, {name: jnp.asarray(v) for name, v in given.items() if name not in floats}


def truths(chain: Chain, holes: str, labels):
    """log Z, its gradient (the marginals, summed where tables are shared), and log P of labels."""
    everything = listed(chain, holes)
    live, k = exists(chain), chain.emissions.shape[1]
    nodes, pairs = everything.nodes(k, live), everything.pairs(k)
    first, last = live.copy(), live.copy()
    for i, j in everything.joints:
        first[j], last[i] = False, False
    gradient = {
        "emissions": nodes,
        "transitions": pairs.sum(axis=0) if chain.transitions.ndim == 2 else pairs[1:],
        "start": nodes[first].sum(axis=0),
        "end": nodes[last].sum(axis=0),
    }
    score = everything.scores[(everything.labels == np.where(live, labels, 0)).all(axis=1)][0]
    return everything.log_z, gradient, score - everything.log_z if score > -np.inf else -np.inf


def fuzz(n: int, seed: int, holes: str, own: bool, dtype, close: float) -> int:
    """Random chains, held to the list; how many of them allow nothing."""
    rng = np.random.default_rng(seed)
    chains = [random_chain(rng, T, K, own=own) for _ in range(n)]
    tables = ("emissions", "transitions", "start", "end")
    rounded = [c._replace(**{f: getattr(c, f).astype(dtype).astype(float) for f in tables}) for c in chains]
    labels = rng.integers(0, K, (n, T))
    labels[~np.stack([exists(c) for c in chains])] = -100
    (values, log_p), gradients = jax.tree.map(np.asarray, summed(holes)(*split(stacked(chains), dtype), labels))
    impossible = 0
    for i, chain in enumerate(rounded):
        log_z, marginals, wanted = truths(chain, holes, labels[i])
        impossible += log_z == -np.inf
        note = f"chain {i} of seed {seed}"
        np.testing.assert_allclose(values[i], log_z, rtol=close, atol=close, err_msg=note)
        np.testing.assert_allclose(log_p[i], wanted, rtol=close, atol=close, err_msg=note)
        assert log_p[i] <= 0, note
        for name, exact in marginals.items():
            np.testing.assert_allclose(gradients[name][i], exact, rtol=close, atol=close, err_msg=f"{name}, {note}")
    return impossible


@pytest.mark.parametrize(("holes", "own"), [pytest.param("link", False, marks=pytest.mark.slow), ("cut", True)])
def test_value_and_gradient_agree_with_the_list(holes, own):
    assert 0 < fuzz(150, 0, holes, own, np.float64, 1e-10) < 75


def test_value_and_gradient_in_float32():
    with float64(False):
        fuzz(150, 1, "link", False, np.float32, 2e-4)
    summed.cache_clear()


@pytest.mark.slow
def test_ten_thousand_chains():
    for seed in range(8):
        for holes, own in itertools.product(("link", "cut"), (False, True)):
            fuzz(200, 100 + seed, holes, own, np.float64, 1e-10)
    with float64(False):
        for seed in range(8):
            for holes, own in itertools.product(("link", "cut"), (False, True)):
                fuzz(200, 200 + seed, holes, own, np.float32, 2e-4)
    summed.cache_clear()


def test_a_path_by_way_of_two_weights_that_are_rounded_to_zero_is_not_lost():
    """In float32: neither pass sees it alone, and log Z was 4.1 nats too low (found by the chains above)."""
    rng = np.random.default_rng(203)
    chain = [random_chain(rng, T, K, own=False) for _ in range(194)][-1]
    tables = {name: table.astype(np.float32) for name, table in chain.arguments().items() if table.dtype.kind == "f"}
    rounded = chain._replace(**{name: table.astype(float) for name, table in tables.items()})
    with float64(False):
        value = lnz.log_partition(lnz.LinearChain(**(chain.arguments() | tables))).value  # pyright: ignore[reportArgumentType]
    assert float(value) == pytest.approx(listed(rounded, "link").log_z, abs=1e-3)


def test_short_chains_and_few_labels():
    rng = np.random.default_rng(4)
    chains = [random_chain(rng, t, k, own=own) for t, k, own in [(0, 3, False), (1, 2, True)]]

    def all_of_them(given):
        return [lnz.log_partition(lnz.LinearChain(**chain)).value for chain in given]

    values, slopes = jax.jit(
        lambda given: (
            all_of_them(given),
            jax.grad(lambda e: sum(all_of_them([{**g, "emissions": x} for g, x in zip(given, e, strict=True)])))(
                [g["emissions"] for g in given]
            ),
        )
    )([jax.tree.map(jnp.asarray, c.arguments()) for c in chains])
    for chain, value, slope in zip(chains, values, slopes, strict=True):
        truth = listed(chain)
        np.testing.assert_allclose(value, truth.log_z, atol=1e-12)
        np.testing.assert_allclose(slope, truth.nodes(chain.emissions.shape[1], exists(chain)), atol=1e-12)


def plain(t=4, k=3, seed=0, **more):
    rng = np.random.default_rng(seed)
    return Chain(
        rng.normal(size=(t, k)), rng.normal(size=(k, k)), start=rng.normal(size=k), end=rng.normal(size=k), **more
    )


def test_second_derivatives_are_covariances():
    """T7: an exponential family, forwards over reverse and reverse over reverse, with a hole and a forbidden label."""
    chain = plain(mask=np.array([True, False, True, True]))
    chain.emissions[3, 1] = -np.inf

    def log_z(emissions):
        return lnz.log_partition(lnz.LinearChain(**{**chain.arguments(), "emissions": emissions})).value

    slope = jax.grad(log_z)
    direction = np.random.default_rng(1).normal(size=(4, 3))
    forwards, backwards = jax.jit(
        lambda e, d: (jax.jvp(slope, (e,), (d,))[1], jax.grad(lambda e: jnp.sum(slope(e) * d))(e))
    )(jnp.asarray(chain.emissions), jnp.asarray(direction))
    truth = listed(chain)
    features = (truth.labels[:, :, None] == np.arange(3)) * exists(chain)[:, None]
    spread = features - np.tensordot(truth.p, features, 1)
    wanted = np.tensordot(truth.p * np.tensordot(spread, direction, 2), spread, 1)
    np.testing.assert_allclose(forwards, wanted, atol=1e-10)
    np.testing.assert_allclose(backwards, wanted, atol=1e-10)


def garden_path(length, boost):
    """A label that falls behind by e^-100, and catches up later by steps that a float32 holds: no labels may change."""
    emissions = np.zeros((length, 2))
    emissions[0, 1], emissions[1:, 1] = -100, boost
    return lnz.LinearChain(emissions.astype(np.float32), np.where(np.eye(2), 0, -np.inf).astype(np.float32))


def test_what_underflows_is_not_lost():
    with float64(False):
        questions = jax.jit(lambda c, k: (lnz.log_partition(c).value, lnz.marginals(c), lnz.exact_samples(c, k, 50)))
        for boost in (30.0, 60.0):
            value, marginals, samples = questions(garden_path(4, boost), jax.random.key(0))
            wanted = np.logaddexp(0, 3 * boost - 100)
            assert float(value) == pytest.approx(wanted, rel=1e-6, abs=1.2e-7)
            assert float(marginals[0, 1]) == pytest.approx(np.exp(3 * boost - 100 - wanted), rel=1e-4)
            assert bool((samples == int(boost == 60)).all())


def test_half_precision_accumulates_in_float32():
    rng = np.random.default_rng(2)
    emissions, transitions = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((512, 5), (5, 5)))
    labels = rng.integers(0, 5, 512)
    with float64(False):
        chain = lnz.LinearChain(emissions, transitions)
        both = jax.jit(lambda c, y: (jax.value_and_grad(lambda c: lnz.log_partition(c).value)(c), -c(y)))
        (value, slope), score = both(chain, labels)
    assert value.dtype == jnp.float32
    assert slope.emissions.dtype == jnp.bfloat16
    wide = lnz.LinearChain(np.asarray(emissions, float), np.asarray(transitions, float))
    truth, wanted = jax.jit(lambda c, y: (lnz.log_partition(c).value, -c(y)))(wide, labels)
    assert float(value) == pytest.approx(float(truth), rel=1e-5)
    assert float(score) == pytest.approx(float(wanted), rel=1e-5)
    np.testing.assert_allclose(np.asarray(slope.emissions, float).sum(axis=1), 1, atol=1e-2)


def test_nothing_allowed():
    chain = lnz.LinearChain(**plain().arguments(), allowed=np.arange(4)[:, None] != np.array([2, 2, 2]))
    value, slope = jax.value_and_grad(lambda c: lnz.log_partition(c).value)(chain)
    assert value == -np.inf
    assert all(bool((leaf == 0).all()) for leaf in jax.tree.leaves(slope))
    key = jax.random.key(0)
    for question in (
        lnz.marginals,
        lnz.map_state,
        lnz.crf.entropy,
        lambda c: lnz.crf.n_best(c, 6),
        lambda c: lnz.exact_samples(c, key, 200),
        lambda c: lnz.crf.negative_log_likelihood(c, jnp.asarray([0, 0, 0, 0])),
    ):
        with pytest.raises(ValueError, match="no labelling is possible: Z = 0"):
            question(chain)
    assert lnz.crf.log_probability(chain, jnp.asarray([0, 0, 0, 0])) == -np.inf


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"emissions": np.zeros((2, 4, 3))}, r"shape \(T, K\), but got \(2, 4, 3\): a batch goes through jax.vmap"),
        ({"transitions": np.zeros((4, 3, 3))}, r"shape \(3, 3\), or \(3, 3, 3\) .* got \(4, 3, 3\)"),
        ({"lengths": 5}, r"a length must be in \[0, 4\], the number of nodes of the array, but is 5"),
        ({"lengths": -1}, "but is -1"),
        ({"lengths": np.array([1, 2])}, r"the length of one sequence must be one integer, .* shape \(2,\)"),
        ({"mask": np.ones(4)}, r"mask must be booleans of shape \(4,\), but got float64"),
        ({"mask": np.ones(3, bool)}, r"shape \(4,\), but got bool of shape \(3,\)"),
        ({"allowed": np.ones((3, 4), bool)}, r"allowed must be booleans of shape \(4, 3\)"),
        ({"allowed_transitions": np.ones((2, 2), bool)}, r"allowed_transitions must be booleans of shape \(3, 3\)"),
        ({"start": np.zeros(4)}, r"start needs one log-potential per label, shape \(3,\), but got \(4,\)"),
        ({"holes": "skip"}, 'holes must be "link" or "cut"'),
        ({"emissions": np.full((4, 3), np.nan)}, r"emissions hold nan at \(0, 0\)"),
        ({"transitions": np.full((3, 3), np.inf)}, r"transitions hold inf at \(0, 0\)"),
    ],
)
def test_bad_input_is_refused(more, words):
    with pytest.raises(ValueError, match=words):
        lnz.LinearChain(**{**plain().arguments(), **more})


def test_bad_labels_are_refused():
    chain = lnz.LinearChain(**plain().arguments(), mask=np.arange(4) < 3)
    for labels, words in [
        ([0, 3, 0, 0], r"labels must be in \[0, 2\], but node 1 has label 3; mask the node or fix the label"),
        ([0, -1, 0, 0], "node 1 has label -1"),
        ([0, 1], r"4 integers, but got int64 of shape \(2,\)"),
        ([0.0, 1.0, 0.0, 0.0], "4 integers, but got float64"),
    ]:
        with pytest.raises(ValueError, match=words):
            lnz.crf.negative_log_likelihood(chain, jnp.asarray(labels))


def test_what_python_cannot_see_becomes_nan():
    chain = plain()

    def both(n, labels, emissions):
        crf = lnz.LinearChain(emissions, chain.transitions, n)
        return lnz.log_partition(crf).value, lnz.crf.log_probability(crf, labels)

    batch = jax.jit(jax.vmap(both))
    lengths = jnp.asarray([4, 5, -1, 3, 3, 3])
    labels = jnp.asarray([[0, 1, 2, 0]] * 4 + [[0, 3, 0, 0], [0, 1, 2, -100]])
    values, log_p = batch(lengths, labels, jnp.stack([jnp.asarray(chain.emissions)] * 6))
    assert np.isnan(values).tolist() == [False, True, True, False, False, False]
    assert np.isnan(log_p).tolist() == [False, True, True, False, True, False]
    slope = jax.jit(jax.grad(lambda e: lnz.log_partition(lnz.LinearChain(e, chain.transitions)).value))(
        jnp.asarray(chain.emissions).at[2, 1].set(jnp.nan)
    )
    assert np.isnan(slope).all()


def test_the_same_chain_as_a_factor_graph():
    """By elimination of its factors, with holes of both kinds; and `choose` takes the chain's own route."""
    for holes, own in (("link", True), ("cut", False)):
        given = plain(mask=np.array([True, False, True, True]))
        if own:
            given = given._replace(transitions=np.random.default_rng(3).normal(size=(3, 3, 3)))
        chain = lnz.LinearChain(holes=holes, **given.arguments())
        graph, states = chain.factors(), np.array(list(itertools.product(range(3), repeat=4)))
        np.testing.assert_allclose(
            jax.vmap(graph)(jnp.asarray(states)), jax.vmap(chain)(jnp.asarray(states)), atol=1e-12
        )
        wanted = listed(given, holes).log_z
        assert lnz.routes.Elimination().log_partition(chain).value == pytest.approx(wanted, abs=1e-10)
    assert isinstance(lnz.choose(chain).route, lnz.routes.ForwardBackward)
    with pytest.raises(ValueError, match="neither a LinearChain nor a RandomField on a Chain"):
        lnz.log_partition(graph, route=lnz.routes.ForwardBackward())
    estimate = lnz.log_partition(chain)
    assert estimate.guarantee == "exact"
    assert estimate.lower <= wanted <= estimate.upper
    assert "forward-backward over 4 nodes" in str(estimate)


def longdouble_sum(emissions):
    """log Z of a chain without transitions, in extended precision."""
    return float(sum(np.logaddexp.reduce(row) for row in emissions.astype(np.longdouble)))


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int64])
def test_lengths_of_narrow_integers(kind):
    """T = 300 does not fit into 8 bits: places and lengths are compared as int32, also when they are traced."""
    emissions, pairs, n = jnp.zeros((300, 2)), jnp.zeros((2, 2)), kind(100)

    def log_z(n):
        return lnz.log_partition(lnz.LinearChain(emissions, pairs, n)).value

    for found in (log_z(n), jax.jit(log_z)(n), jax.vmap(log_z)(np.asarray([n]))[0]):
        assert float(found) == pytest.approx(100 * np.log(2), abs=1e-6)
    segments = lnz.SemiMarkovChain(jnp.zeros((300, 1, 2)), pairs, n)
    assert float(lnz.log_partition(segments).value) == pytest.approx(100 * np.log(2), abs=1e-6)


def test_the_rounding_of_potentials_with_impossible_labels():
    """One -inf in a row, a pair or a segment must not hide the size of the others from the claimed rounding."""
    emissions = np.full((12, 3), 3e5)
    clean = lnz.log_partition(lnz.LinearChain(emissions, np.zeros((3, 3))))
    emissions[:, 0] = -np.inf
    pairs = np.full((3, 3), 2e5)
    pairs[0, 1] = -np.inf
    cases = [
        (lnz.LinearChain(emissions, np.zeros((3, 3))), 12 * 3e5),
        (lnz.LinearChain(np.zeros((12, 3)), pairs), 11 * 2e5),
        (lnz.SemiMarkovChain(emissions[:, None], np.zeros((3, 3))), 12 * 3e5),
        (lnz.SemiMarkovChain(np.zeros((12, 1, 3)), pairs), 11 * 2e5),
    ]
    for chain, size in cases:
        found = lnz.log_partition(chain)
        assert float(found.upper - found.value) > size * np.finfo(float).eps
    assert float(clean.upper - clean.value) > 12 * 3e5 * np.finfo(float).eps


@pytest.mark.parametrize("holes", [[True, True, False], [True, False, True], [False, True, True]])
def test_masked_nodes_have_no_marginals_in_the_sum_by_logarithms(holes):
    """A constraint of -1e4 is beyond what scaled probabilities can hold; the sum by logarithms answers by the same contract."""
    emissions = jnp.asarray([[0.0, 1.0], [0.0, 2.0], [5.0, 7.0]])
    for pairs in ([[0.0, -1e4], [0.0, 0.0]], [[-400.0, 0.0], [0.0, 400.0]]):
        chain = lnz.LinearChain(emissions, jnp.asarray(pairs), mask=jnp.asarray(holes))
        for recompute in (False, True):
            sums = chain_sums(chain.potentials(), recompute=recompute)
            for found in (np.asarray(sums.nodes), np.asarray(lnz.marginals(chain))):
                np.testing.assert_allclose(found.sum(axis=1), np.asarray(holes, float), atol=1e-9)
                assert (found[~np.asarray(holes)] == 0).all()
        assert (np.asarray(lnz.crf.mpm_state(chain))[~np.asarray(holes)] == 0).all()


def test_entries_that_are_rounded_to_zero_change_log_z_by_an_eighth_of_a_unit_in_the_last_place():
    """The smallest positive number, at every entry of every node, times what is trusted at most."""
    p = lnz.LinearChain(np.zeros((9, 4)), np.zeros((4, 4))).potentials()
    about = np.finfo(p.nodes.dtype)
    assert _most(p) * about.tiny * p.nodes.size * p.nodes.shape[1] / about.eps == pytest.approx(1 / 8)
