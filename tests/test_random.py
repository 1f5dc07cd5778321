"""Key types: the default is stock JAX bit for bit; the faster ones pass a battery that rejects planted bad generators."""

import copy
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats

from lnz._core.numerics import float64
from lnz._core.random import (
    _hash,
    _hash_bits,
    _mix,
    _split,
    _threefry,
    _threefry13_bits,
    _threefry_bits,
    bits_of,
    fast_key,
    folded,
    parted,
    permutations,
)

SEED = int(os.environ.get("LNZ_SEED", "0"))
SHAPES = [(), (0,), (130,), (3, 5), (0, 4), (5, 1, 2, 3)]
DTYPES = [jnp.uint8, jnp.uint16, jnp.uint32, jnp.uint64]
RAW = [(0, 0), (0, 1), (1, 0), (2**32 - 1, 2**32 - 1), (0x13198A2E, 0x03707344)]
OPT_IN = ["threefry13", "hash"]


def pairs(count: int) -> list[tuple]:
    """Stock keys and their fast twins: some awkward data, some random."""
    random = np.random.default_rng(SEED).integers(0, 2**32, (count, 2), dtype=np.uint32)
    stock = [jax.random.wrap_key_data(jnp.asarray(data, jnp.uint32)) for data in [*RAW, *random]]
    return [(key, fast_key(key)) for key in stock]


def same(one, two) -> bool:
    """Whether two arrays, of numbers or of keys, have the same shape, dtype and bits."""
    if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
        one, two = jax.random.key_data(one), jax.random.key_data(two)
    return one.dtype == two.dtype and np.array_equal(np.asarray(one), np.asarray(two))


# ---- the default is stock JAX


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_are_those_of_stock_jax(shape):
    draw = jax.jit(lambda key: [jax.random.bits(key, shape, dtype) for dtype in DTYPES])
    for stock, fast in pairs(2):
        for one, two in zip(draw(stock), draw(fast), strict=True):
            assert same(one, two)
    assert same(jax.random.bits(stock, shape, jnp.uint32), jax.random.bits(fast, shape, jnp.uint32))  # without jit


@pytest.mark.parametrize("shape", [0, 1, 9, (2, 3), ()])
def test_splits_are_those_of_stock_jax(shape):
    for stock, fast in pairs(2):
        assert same(jax.random.split(stock, shape), jax.random.split(fast, shape))
        assert bits_of(jax.random.split(fast, shape)) == "threefry"


@pytest.mark.parametrize("data", [0, 1, 2**31, 2**32 - 1, np.int8(-1), np.int64(2**40 + 3), np.uint32(17)])
def test_folds_are_those_of_stock_jax(data):
    for stock, fast in pairs(2):
        assert same(jax.random.fold_in(stock, data), jax.random.fold_in(fast, data))


@pytest.mark.parametrize("n", [1, 2, 1625, 1626, 70_000])  # the number of rounds grows with n
def test_permutations_are_those_of_stock_jax(n):
    for key in (jax.random.key(5), fast_key(6), jax.random.PRNGKey(7), fast_key(8, bits="hash")):
        for row, number in zip(permutations(key, 3, range(4, 6), n), (4, 5), strict=True):
            own = jax.random.fold_in(jax.random.fold_in(key, 3), number)
            np.testing.assert_array_equal(row, jax.random.permutation(own, n))
            assert same(folded(key, 3, number), own)


def test_parts_are_those_of_stock_jax():
    for key in (jax.random.key(5), fast_key(6), jax.random.PRNGKey(7), fast_key(8, bits="hash")):
        stock = jax.random.split(jax.random.fold_in(jax.random.fold_in(fast_key(key), 3), 5), 3)
        assert same(parted(key, 3, 3, 5), stock)
        assert bits_of(parted(key, 3, 3, 5)) == bits_of(fast_key(key))
    assert same(jax.jit(lambda key: parted(key, 3, 3, 5))(jax.random.key(5)), parted(jax.random.key(5), 3, 3, 5))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, 2**40 + 5, 2**63 - 1, -(2**63), np.uint32(7), np.int8(-3)])
def test_seeds_are_those_of_stock_jax(seed):
    for bits in ("threefry", *OPT_IN):
        assert same(jax.random.key(seed), fast_key(seed, bits=bits))
    with float64(False):
        assert same(jax.random.key(seed), fast_key(seed))


def test_distributions_are_those_of_stock_jax():
    def draw(key):
        return (
            jax.random.uniform(key, (40,)),
            jax.random.normal(key, (3, 11), jnp.float32),
            jax.random.bernoulli(key, jnp.linspace(0, 1, 50)),
            jax.random.randint(key, (30,), 0, 1000),
        )

    stock, fast = pairs(1)[-1]
    for one, two in zip(jax.jit(draw)(stock), jax.jit(draw)(fast), strict=True):
        assert same(one, two)


def test_bits_are_the_same_under_jit_vmap_and_scan():
    @jax.jit
    def walk(key):
        def step(key, i):
            key, use = jax.random.split(jax.random.fold_in(key, i))
            return key, jax.random.bits(use, (4, 3), jnp.uint32)

        return jax.lax.scan(step, key, jnp.arange(5))[1]

    stock = jax.random.split(jax.random.key(SEED), (2, 3))
    expected = jnp.stack([jnp.stack([walk(key) for key in row]) for row in stock])
    each = jax.jit(jax.vmap(jax.vmap(lambda key: walk(fast_key(key)))))
    assert same(each(stock), expected)
    assert same(each(fast_key(stock)), expected)
    for bits in OPT_IN:
        keys = fast_key(stock, bits=bits)
        assert same(each(keys)[1, 2], walk(keys[1, 2]))


@pytest.mark.parametrize("bits", ["threefry", *OPT_IN])
def test_bits_do_not_depend_on_the_sharding(bits):
    assert jax.device_count() > 1, "conftest gives this suite two devices"
    key, shape = fast_key(SEED, bits=bits), (6, 4)
    spread = NamedSharding(Mesh(np.asarray(jax.devices()[:2]), "x"), PartitionSpec("x"))
    draw = jax.jit(lambda key: jax.random.bits(key, shape, jnp.uint32), out_shardings=spread)
    words, program = draw(key), draw.lower(key).compile().as_text()
    assert len({shard.device for shard in words.addressable_shards}) == 2
    assert same(jax.random.bits(key, shape, jnp.uint32), words)
    assert not any(step in program for step in ("all-gather", "all-reduce", "all-to-all", "collective"))


def test_threefry_gives_the_published_values():
    """The known answers of Random123 (Salmon and others): counter, key, 13 rounds, 20 rounds."""
    for counter, key, thirteen, twenty in (
        ((0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0xFD36D048, 0x2D17272C), (0x1CB996FC, 0xBB002BE7)),
        (
            (0x243F6A88, 0x85A308D3),
            (0x13198A2E, 0x03707344),
            (0xBA3E4725, 0xF27D669E),
            (0xC4923A9C, 0x483DF7A0),
        ),
    ):
        words = [jnp.asarray(word, jnp.uint32) for word in (*key, *counter)]
        assert tuple(map(int, _threefry(*words, 13))) == thirteen
        assert tuple(map(int, _threefry(*words))) == twenty
        assert tuple(map(int, threefry_2x32(tuple(words[:2]), jnp.stack(words[2:])))) == twenty


def test_older_scheme_is_left_to_stock_jax():
    stock, fast = pairs(1)[-1]
    modern = jax.random.bits(fast, (7,), jnp.uint32), jax.random.split(fast, 3)
    with jax.threefry_partitionable(False):
        older = jax.random.bits(fast, (7,), jnp.uint32), jax.random.split(fast, 3)
        assert same(jax.random.bits(stock, (7,), jnp.uint32), older[0])
        assert same(jax.random.split(stock, 3), older[1])
        assert same(jax.random.split(fast_key(stock, bits="hash"), 3), older[1])
    assert not same(modern[0], older[0])
    assert not same(modern[1], older[1])


def test_counters_beyond_a_word():
    """Too many to draw here: the default hands them to stock JAX, the others refuse."""
    key, shape = jnp.zeros(2, jnp.uint32), (2**17, 2**16)
    for function in (lambda key: _threefry_bits(key, 8, shape), lambda key: _split(key, shape)):
        assert "threefry2x32" in str(jax.make_jaxpr(function)(key))
    assert "threefry2x32" not in str(jax.make_jaxpr(lambda key: _threefry_bits(key, 8, (2**16, 2**16)))(key))
    for bits in (_threefry13_bits, _hash_bits):
        with pytest.raises(ValueError, match=r"more than 2\*\*32 words of one key; split the key"):
            jax.make_jaxpr(lambda key, bits=bits: bits(key, 8, shape))(key)
        with pytest.raises(ValueError, match="4 bits are unsupported"):
            bits(key, 4, (2,))


# ---- keys in and out


def test_fast_key_takes_every_form_of_key():
    stock = jax.random.key(5)
    for given in (5, np.int64(5), jnp.asarray(5), stock, jax.random.PRNGKey(5), np.asarray([0, 5], np.uint32)):
        assert same(fast_key(given), stock)
        assert bits_of(fast_key(given)) == "threefry"
        assert bits_of(fast_key(given, bits="hash")) == "hash"
    assert bits_of(stock) == "threefry2x32"
    many = jax.random.split(stock, 4)
    assert same(fast_key(jax.random.key_data(many)), many)
    assert same(fast_key(many, bits="threefry13"), many)


def test_fast_key_keeps_the_choice_of_the_caller():
    for bits in ("threefry", *OPT_IN):
        key = fast_key(3, bits=bits)
        assert bits_of(fast_key(key)) == bits
        assert bits_of(jax.random.split(key)) == bits
        assert bits_of(jax.random.fold_in(key, 1)) == bits
    assert bits_of(fast_key(fast_key(3, bits="hash"), bits="threefry")) == "threefry"


def test_fast_key_leaves_other_families_alone():
    for name in ("rbg", "unsafe_rbg"):
        for bits in (None, "hash"):
            assert bits_of(fast_key(jax.random.key(0, impl=name), bits=bits)) == name


@pytest.mark.parametrize("bits", ["threefry", *OPT_IN])
def test_keys_survive_pickles_and_checkpoints(bits):
    key = fast_key(9, bits=bits)
    rebuilt = fast_key(np.asarray(jax.random.key_data(key)), bits=bits_of(key))
    for other in (rebuilt, copy.deepcopy(key), pickle.loads(pickle.dumps(key))):
        assert bits_of(other) == bits
        assert same(jax.random.bits(other, (3,)), jax.random.bits(key, (3,)))


@pytest.mark.parametrize(
    "bad", [1.5, True, np.float32(2), np.zeros(2, np.int64), np.zeros(4, np.uint32), np.bool_(True), np.arange(3)]
)
def test_fast_key_refuses_what_is_no_key(bad):
    with pytest.raises(TypeError, match="neither a seed nor a random key; pass an integer"):
        fast_key(bad)


def test_fast_key_refuses_unknown_bits():
    with pytest.raises(ValueError, match="bits='mt19937' is unknown; choose one of 'threefry', 'threefry13', 'hash'"):
        fast_key(0, bits="mt19937")


@pytest.mark.parametrize("bits", OPT_IN)
def test_opt_in_types_split_as_stock_and_draw_otherwise(bits):
    stock = jax.random.key(SEED)
    key = fast_key(stock, bits=bits)
    assert same(jax.random.split(stock, 5), jax.random.split(key, 5))
    assert same(jax.random.fold_in(stock, 5), jax.random.fold_in(key, 5))
    draw = jax.jit(lambda key: [jax.random.bits(key, (50, 3), dtype) for dtype in DTYPES])
    for words, others, dtype in zip(draw(key), draw(stock), DTYPES, strict=True):
        assert words.dtype == dtype
        assert not same(words, others)
    assert same(draw(key)[2].ravel(), jax.random.bits(key, (150,), jnp.uint32))
    wide, narrow = jax.random.bits(key, (64,), jnp.uint64), jax.random.bits(key, (64,), jnp.uint32)
    assert len(np.unique(np.asarray(wide) >> np.uint64(32))) == 64
    assert bits != "hash" or same(np.asarray(wide).astype(np.uint32), narrow)


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        ("threefry13", [382294519, 3068939415, 2498755852, 4201829964]),
        ("hash", [3082590327, 2673674946, 2648096371, 283837894]),
    ],
)
def test_opt_in_bits_do_not_change_between_versions(bits, words):
    """The values are those of a second implementation, in C."""
    assert jax.random.bits(fast_key(0, bits=bits), (4,), jnp.uint32).tolist() == words


# ---- a battery for the bits


COUNT = 2**20
LAGS = (1, 2, 16, 784)
ONES = np.unpackbits(np.arange(2**16, dtype=">u2").view(np.uint8).reshape(-1, 2), axis=1).sum(1).astype(np.uint8)


def chi_square(found, expected) -> float:
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    return float(((found - expected) ** 2 / expected).sum())


def flips(words: np.ndarray) -> float:
    """Σ over the 32 bits of z², for the count of ones in each: chi-square with 32 degrees of freedom."""
    ones = np.asarray([np.count_nonzero(words & np.uint32(1 << bit)) for bit in range(32)])
    return float(((2 * ones - len(words)) ** 2 / len(words)).sum())


def battery(words: np.ndarray) -> dict[str, float]:
    """p-values of a sequence of 2^20 words, index = counter (or 16 words each of 2^16 keys)."""
    p = {"balance": stats.chi2.sf(flips(words), 32)}

    octets = [np.bincount(words.view(np.uint8)[place::4], minlength=256) for place in range(4)]
    p["bytes"] = stats.chi2.sf(chi_square(octets, COUNT / 256), 4 * 255)

    weight = np.bincount(ONES[words >> np.uint32(16)] + ONES[words & np.uint32(0xFFFF)], minlength=33)[8:25]
    expected = COUNT * stats.binom.pmf(np.arange(8, 25), 32, 0.5)
    p["weights"] = stats.chi2.sf(chi_square(weight, expected), 16)

    for shift, name in ((24, "high pairs"), (0, "low pairs")):
        byte = (words >> np.uint32(shift)) & np.uint32(255)
        p[name] = stats.chi2.sf(chi_square(np.bincount(byte[::2] << 8 | byte[1::2], minlength=2**16), 8), 2**16 - 1)

    for lag in LAGS:  # at lag 1 these are the runs of each bit
        p[f"lag {lag}"] = stats.chi2.sf(flips(words[lag:] ^ words[:-lag]), 32)

    unit = words / 2**32 - 0.5
    p["correlation"] = 2 * stats.norm.sf(abs(12 * (unit[1:] * unit[:-1]).sum() / np.sqrt(COUNT - 1)))
    rising = words[1:] > words[:-1]
    turns, mean, variance = np.count_nonzero(rising[1:] != rising[:-1]), 2 * (COUNT - 2) / 3, (16 * COUNT - 29) / 90
    p["runs up and down"] = 2 * stats.norm.sf(abs(turns - mean) / np.sqrt(variance))

    def poisson(count, mean):
        return min(1.0, 2 * min(stats.poisson.cdf(count, mean), stats.poisson.sf(count - 1, mean)))

    p["collisions"] = poisson(np.count_nonzero(np.diff(np.sort(words)) == 0), COUNT**2 / 2**33)
    spacings = np.sort(np.diff(np.sort(words.reshape(-1, 4096), axis=1), axis=1), axis=1)
    p["birthday spacings"] = poisson(np.count_nonzero(spacings[:, 1:] == spacings[:, :-1]), COUNT * 4096**2 / 2**34)

    ranks = np.bincount(np.minimum(32 - rank(words.reshape(-1, 32)), 2), minlength=3)
    p["matrix rank"] = stats.chi2.sf(chi_square(ranks, COUNT / 32 * np.asarray([0.288788, 0.577576, 0.133636])), 2)

    avalanche = 0.0
    for bit in range(20):
        halves = words.reshape(-1, 2, 1 << bit)
        avalanche += flips((halves[:, 0] ^ halves[:, 1]).ravel())
    p["avalanche"] = stats.chi2.sf(avalanche, 20 * 32)
    return {name: float(value) for name, value in p.items()}


def rank(matrices: np.ndarray) -> np.ndarray:
    """Ranks over GF(2) of matrices whose 32 rows are words, by elimination in all of them at once."""
    rows, ranks, which = matrices.copy(), np.zeros(len(matrices), int), np.arange(len(matrices))
    for bit in range(32):
        has = (rows >> np.uint32(bit)) & np.uint32(1)
        pivot = has.argmax(1)
        row = np.where(has[which, pivot] == 1, rows[which, pivot], np.uint32(0))
        rows ^= has * row[:, None]  # clears the bit everywhere, the pivot itself included
        ranks += row != 0
    return ranks


def stream(key) -> np.ndarray:
    return np.asarray(jax.jit(lambda key: jax.random.bits(key, (COUNT,), jnp.uint32))(key))


def across(keys) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(lambda key: jax.random.bits(key, (16,), jnp.uint32)))(keys)).ravel()


SOURCES = {
    "one key": stream,
    "seeds in sequence": lambda key: across(
        fast_key(jax.vmap(jax.random.key)(SEED + jnp.arange(2**16)), bits=bits_of(key))
    ),
    "a split key": lambda key: across(jax.random.split(key, 2**16)),
    "folds in sequence": lambda key: across(jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(2**16))),
}


@pytest.mark.parametrize("bits", OPT_IN)
@pytest.mark.parametrize("source", SOURCES)
def test_opt_in_bits_pass_the_battery(bits, source):
    p = battery(SOURCES[source](fast_key(SEED, bits=bits)))
    assert min(p.values()) > 1e-8, p


def test_narrow_and_wide_words_pass_the_battery():
    key = fast_key(SEED, bits="hash")
    wide = np.asarray(jax.random.bits(key, (COUNT // 2,), jnp.uint64)).view(np.uint32)
    narrow = np.asarray(jax.random.bits(key, (4 * COUNT,), jnp.uint8)).view(np.uint32)
    for words in (wide, narrow):
        p = battery(words)
        assert min(p.values()) > 1e-8, p


# what each bad generator is, and the tests of the battery that must see it
PLANTED = {
    "Threefry of 4 rounds": {"avalanche"},
    "a congruential generator": {"low pairs", "avalanche", "lag 16"},
    "a hash that sees the raw key": {"avalanche"},
    "a bijection of the counter": {"collisions"},
    "a bit set too often": {"balance", "bytes"},
    "a byte copied to the next": {"weights", "matrix rank"},
    "rows that depend on each other": {"matrix rank"},
    "numbers sorted in threes": {"correlation", "runs up and down", "high pairs"},
    "four bits cut off": {"birthday spacings", "collisions"},
    **{f"an echo at lag {lag}": {f"lag {lag}"} for lag in LAGS},
}


def plant(name: str) -> np.ndarray:
    source, index, zero = np.random.default_rng(SEED), np.arange(COUNT, dtype=np.uint32), np.uint32(0)
    good, rare = source.integers(0, 2**32, COUNT, dtype=np.uint32), source.random(COUNT) < 0.02
    with np.errstate(over="ignore"):
        match name:
            case "Threefry of 4 rounds":
                return np.bitwise_xor(*_threefry(zero, np.uint32(SEED), np.zeros_like(index), index, 4))
            case "a congruential generator":
                powers = np.multiply.accumulate(np.full(COUNT, 1664525, np.uint32))
                return np.add.accumulate(powers, dtype=np.uint32) * np.uint32(1013904223) + np.uint32(SEED)
            case "a hash that sees the raw key":
                return _hash(index // np.uint32(16), np.uint32(SEED), index % np.uint32(16))
            case "a bijection of the counter":
                return _mix(index + np.uint32(SEED), (16, 13, 16), (0x85EBCA6B, 0xC2B2AE35))
            case "a bit set too often":
                return np.where(rare, good | np.uint32(1 << 13), good)
            case "a byte copied to the next":
                return good & ~np.uint32(255) | good >> np.uint32(8) & np.uint32(255)
            case "rows that depend on each other":
                some = np.where(source.random((COUNT // 32, 31)) < 0.5, good.reshape(-1, 32)[:, :31], zero)
                good.reshape(-1, 32)[:, 31] = np.bitwise_xor.reduce(some, axis=1)
                return good
            case "numbers sorted in threes":
                good[:-1].reshape(-1, 3).sort(axis=1)
                return good
            case "four bits cut off":
                return good & ~np.uint32(15)
    lag = int(name.split()[-1])
    return np.concatenate([good[:lag], np.where(rare[lag:], good[:-lag], good[lag:])])


@pytest.mark.parametrize("name", PLANTED)
def test_battery_rejects(name):
    p = battery(plant(name))
    seen = {test for test, value in p.items() if value < 1e-8}
    assert seen >= PLANTED[name], p


def test_every_test_of_the_battery_can_fail():
    p = battery(np.random.default_rng(SEED).integers(0, 2**32, COUNT, dtype=np.uint32))
    assert min(p.values()) > 1e-8, p
    assert set().union(*PLANTED.values()) == set(p)
