"""Random bits that are cheap on a CPU, as key types for `jax.random`.

Discrete sampling spends its time on matrix products and random bits. On a CPU, JAX compiles its
`threefry2x32` as a rolled loop that cannot be fused with the code that uses the bits. The key types here can be:

| `bits`         | what                                                          | use                                 |
|----------------|---------------------------------------------------------------|-------------------------------------|
| `"threefry"`   | Threefry-2x32, 20 rounds, unrolled: **the bits of stock JAX** | the default                         |
| `"threefry13"` | the same with 13 rounds, which have no known statistical flaw | opt-in; simulation, no cryptography |
| `"hash"`       | the xor of two keyed hashes of the counter                    | opt-in; tested, not proven          |

All three split, fold in and seed as stock JAX does (20 rounds), so their streams are as independent of each other as
stock streams; only the bits drawn from a key differ. A key keeps its data when its type changes.

    >>> import jax
    >>> key = fast_key(0)
    >>> bool((jax.random.uniform(key, (3,)) == jax.random.uniform(jax.random.key(0), (3,))).all())
    True

A sampler gets faster still by keeping its states as `bool` where they leave a scan (every layer of an RBM, not only the
visible one): the processor then works on wider vectors. `benchmarks/random_bits.py` measures all of this.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).
"""

import functools
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl, threefry_prng_impl
from jaxtyping import Array, ArrayLike, Int, Key, PRNGKeyArray, UInt, UInt32

from lnz._core.frozen import is_traced

Keys = Key[Array, " n"]  # several keys
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
_WIDTHS = (8, 16, 32, 64)
_LARGEST = 2**32  # counters are one 32-bit word; the other is 0


def fast_key(key: ArrayLike, *, bits: str | None = None) -> Key[Array, "..."]:
    """The same key, of a type whose bits are cheap on a CPU.

    With the default every draw, split and fold is that of the stock key, bit for bit, only faster. Works under `jit` and
    `vmap`, and on arrays of keys.

    **Arguments:**
    - `key`: an integer seed; a typed key or array of keys (`jax.random.key`); or raw key data, uint32 of shape
        `(..., 2)` (`jax.random.PRNGKey`). Keys of another family (`rbg`, `philox2x32`, ...) are returned as they are,
        whatever `bits` is.
    - `bits`: `"threefry"`, `"threefry13"` or `"hash"`, see the table of this module. None means `"threefry"`, but a key
        that already has one of these types keeps it: a function can call `fast_key` on its argument without undoing the
        caller's choice.

    **Raises:** `ValueError` for unknown `bits`; `TypeError` for anything other than a seed or a key.

    Example:
        >>> import jax
        >>> jax.random.bits(fast_key(7)) == jax.random.bits(jax.random.key(7))
        Array(True, dtype=bool)
        >>> bits_of(fast_key(jax.random.key(7), bits="hash"))
        'hash'
    """
    if bits is not None and bits not in _TYPES:
        raise ValueError(f"bits={bits!r} is unknown; choose one of {', '.join(map(repr, _TYPES))}")
    chosen = _TYPES[bits or "threefry"]
    dtype = getattr(key, "dtype", None)
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        present = bits_of(key)
        if present == "threefry2x32" or (present in _TYPES and bits not in (None, present)):
            return jax.random.wrap_key_data(jax.random.key_data(key), impl=chosen)
        return key
    shape = np.shape(key)
    if dtype == np.uint32 and shape[-1:] == (2,):
        return jax.random.wrap_key_data(jnp.asarray(key), impl=chosen)
    integer = isinstance(key, int) if dtype is None else jnp.issubdtype(dtype, jnp.integer)
    if integer and not isinstance(key, bool) and shape == ():
        return jax.random.key(key, impl=chosen)
    kind = type(key).__name__ if dtype is None else f"{dtype} of shape {shape}"
    raise TypeError(f"{kind} is neither a seed nor a random key; pass an integer, or a key from jax.random.key(seed)")


def bits_of(key: ArrayLike) -> str:
    """The name of a key's type: what `fast_key` calls `bits`, or JAX's own name (`"threefry2x32"`, `"rbg"`, ...).

    A key's data and this name are all that a checkpoint must store.
    """
    present = jax.random.key_impl(key)
    return next((name for name, implementation in _TYPES.items() if implementation == present), str(present))


def _threefry(key0: Any, key1: Any, x0: Any, x1: Any, rounds: int = 20) -> tuple[Any, Any]:
    """Threefry-2x32: the block (x0, x1) encrypted under (key0, key1), all uint32, without a loop.

    Each round is x0 += x1; x1 = rotate(x1) ^ x0. The key enters before the first round and after every fourth.
    """
    keys = (key0, key1, key0 ^ key1 ^ np.uint32(_PARITY))
    x0, x1 = x0 + key0, x1 + key1
    for i in range(rounds):
        x0 = x0 + x1
        turn = _ROTATIONS[i % 8]
        x1 = ((x1 << np.uint32(turn)) | (x1 >> np.uint32(32 - turn))) ^ x0
        if i % 4 == 3:
            n = i // 4 + 1
            x0, x1 = x0 + keys[n % 3], x1 + (keys[(n + 1) % 3] + np.uint32(n))
    return x0, x1


def _mix(x: Any, shifts: tuple[int, int, int], factors: tuple[int, int]) -> Any:
    """A bijection of 32-bit words in which every bit of x moves every bit of the result: shift, multiply, repeat."""
    x = (x ^ (x >> np.uint32(shifts[0]))) * np.uint32(factors[0])
    x = (x ^ (x >> np.uint32(shifts[1]))) * np.uint32(factors[1])
    return x ^ (x >> np.uint32(shifts[2]))


def _hash(key0: Any, key1: Any, counter: Any) -> Any:
    """A keyed hash of a 32-bit counter: mix(counter ^ key0) ^ mix'(counter + key1).

    One bijection alone never repeats a word, which a test of collisions detects; the xor of two does not have this flaw.
    The mixers are C. Wellons's `lowbias32` (2018) and A. Appleby's MurmurHash3 finaliser (2011).
    """
    one = _mix(counter ^ key0, (16, 15, 16), (0x7FEB352D, 0x846CA68B))
    return one ^ _mix(counter + key1, (16, 13, 16), (0x85EBCA6B, 0xC2B2AE35))


def _counter(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """0, 1, 2, ... in row-major order; sums of iotas, so that a compiler can fuse and shard it."""
    count, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        if shape[axis] > 1:
            count = count + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
        stride *= shape[axis]
    return count


def _words(key: UInt32[Array, "2"]) -> tuple[Any, Any]:
    """The two words of a key. The barrier keeps XLA from moving the computation of the key (a split, a fold) into the loop
    over the counters, where its constants would displace those of the rounds and cost 20 % of the speed."""
    key = jax.lax.optimization_barrier(key)
    return key[0], key[1]


def _narrow(high: Any, low: Any, width: int) -> UInt[Array, "..."]:
    """Two words as one of `width` bits: side by side for 64, xored and truncated for less."""
    if width == 64:
        return (high.astype(jnp.uint64) << np.uint64(32)) | low.astype(jnp.uint64)
    return (high ^ low).astype(f"uint{width}")


def _left_to_stock(shape: tuple[int, ...]) -> bool:
    """Whether only stock JAX gives the same bits: in its older scheme (`jax_threefry_partitionable` off), and for more
    counters than fit into a word."""
    return not getattr(jax.config, "jax_threefry_partitionable", True) or math.prod(shape) > _LARGEST


def _check_request(width: int, shape: tuple[int, ...]) -> None:
    if width not in _WIDTHS:
        raise ValueError(f"random words of {width} bits are unsupported; use 8, 16, 32 or 64")
    if math.prod(shape) > _LARGEST:
        raise ValueError(f"shape {shape} needs more than 2**32 words of one key; split the key, or use bits='threefry'")


def _compiled(function: Any) -> Any:
    """`jit`, with shapes and widths static, behind a plain function: keys hold these functions, and must pickle."""
    names = [name for name in inspect.signature(function).parameters if name in ("width", "shape")]
    compiled = jax.jit(function, static_argnames=names)

    @functools.wraps(function)
    def call(*arguments: Any) -> Array:
        return compiled(*arguments)

    return call


@_compiled
def _threefry_bits(key: UInt32[Array, "2"], width: int, shape: tuple[int, ...]) -> UInt[Array, "..."]:
    if _left_to_stock(shape) or width not in _WIDTHS:
        return threefry_prng_impl.random_bits(key, width, shape)
    return _narrow(*_threefry(*_words(key), jnp.zeros(shape, jnp.uint32), _counter(shape)), width)


@_compiled
def _threefry13_bits(key: UInt32[Array, "2"], width: int, shape: tuple[int, ...]) -> UInt[Array, "..."]:
    _check_request(width, shape)
    return _narrow(*_threefry(*_words(key), jnp.zeros(shape, jnp.uint32), _counter(shape), 13), width)


@_compiled
def _hash_bits(key: UInt32[Array, "2"], width: int, shape: tuple[int, ...]) -> UInt[Array, "..."]:
    """Bits from the keyed hash. The hash is too simple for raw keys: two keys that differ in a bit would give related words.
    It is keyed by Threefry-20 of blocks at the far end of the counter, which `split` and `fold_in` never reach."""
    _check_request(width, shape)
    words, last, counter = _words(key), np.uint32(0xFFFFFFFF), _counter(shape)
    low = _hash(*_threefry(*words, last, last), counter)
    if width < 64:
        return low.astype(f"uint{width}")
    return _narrow(_hash(*_threefry(*words, last, last - np.uint32(1)), counter), low, 64)


@_compiled
def _split(key: UInt32[Array, "2"], shape: tuple[int, ...]) -> UInt32[Array, "... 2"]:
    if _left_to_stock(shape):
        return threefry_prng_impl.split(key, shape)
    return jnp.stack(_threefry(*_words(key), jnp.zeros(shape, jnp.uint32), _counter(shape)), axis=-1)


@_compiled
def _fold_in(key: UInt32[Array, "2"], data: Any) -> UInt32[Array, "2"]:
    return jnp.stack(_threefry(*_words(key), np.uint32(0), jnp.asarray(data).astype(jnp.uint32)))


def _key_type(name: str, bits: Any) -> Any:
    return define_prng_impl(
        key_shape=(2,),
        seed=threefry_prng_impl.seed,
        split=_split,
        random_bits=bits,
        fold_in=_fold_in,
        name=f"lnz_{name}",
        tag=f"lnz_{name}",
    )


_TYPES = {
    "threefry": _key_type("threefry", _threefry_bits),
    "threefry13": _key_type("threefry13", _threefry13_bits),
    "hash": _key_type("hash", _hash_bits),
}


def folded(key: PRNGKeyArray, *numbers: int) -> PRNGKeyArray:
    """The key with one number after another folded in, on the host where it is known, where nothing has to be compiled."""
    if not _on_host(key):
        return functools.reduce(jax.random.fold_in, numbers, key)
    return _of_words(key, np.stack(_folded_words(key, numbers), axis=-1)[0])


def parted(key: ArrayLike, n: int, *numbers: int) -> Key[Array, " n"]:
    """n keys of `fast_key`: `jax.random.split`, bit for bit, of the key with one number after another folded in, on the host where it is known.

    Example:
        >>> import jax
        >>> keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 3), 4)
        >>> bool((jax.random.key_data(parted(jax.random.key(0), 4, 3)) == jax.random.key_data(keys)).all())
        True
    """
    key = fast_key(key)
    if not _on_host(key):
        return jax.random.split(functools.reduce(jax.random.fold_in, numbers, key), n)
    first, second = _folded_words(key, numbers)
    return _of_words(key, np.stack(_threefry(first, second, np.uint32(0), np.arange(n, dtype=np.uint32)), axis=-1))


def _folded_words(key: PRNGKeyArray, numbers: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(jax.random.key_data(key))[:, None]
    for number in numbers:
        first, second = _threefry(first, second, np.uint32(0), np.uint32(number))
    return first, second


def _of_words(like: Array, words: np.ndarray) -> Array:
    data = jax.device_put(words.copy())
    return data if like.dtype == np.uint32 else jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))


def _on_host(key: PRNGKeyArray) -> bool:
    """Whether the key is known and its bits are Threefry's of this module, so that NumPy can draw them."""
    return not is_traced(key) and bits_of(key) in ("threefry2x32", "threefry") and not _left_to_stock(())


def permutations(key: PRNGKeyArray, label: int, numbers: range, n: int) -> Int[np.ndarray, "numbers n"]:
    """0 … n - 1 in random orders: `jax.random.permutation`, bit for bit, of the key with a label and then each number folded in.

    They are made on the host, so that no sort is compiled for every n; those of keys other than Threefry are left to JAX.

    Example:
        >>> import jax
        >>> key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 3), 7)
        >>> bool((permutations(jax.random.key(0), 3, range(7, 9), 100)[0] == jax.random.permutation(key, 100)).all())
        True
    """
    if not _on_host(key):
        key = jax.random.fold_in(key, label)
        return np.stack([jax.random.permutation(jax.random.fold_in(key, number), n) for number in numbers])
    zero, mask = np.uint32(0), np.uint64(2**32 - 1)
    first, second = _folded_words(key, (label,))
    first, second = _threefry(first, second, zero, np.asarray(numbers, np.uint32))
    places, orders = np.arange(n, dtype=np.uint64), np.broadcast_to(np.arange(n), (len(numbers), n))
    for _ in range(math.ceil(3 * math.log(max(1, n)) / math.log(2**32 - 1))):
        own, other = _threefry(
            first, second, zero, np.uint32(1)
        )  # the key is split: one for the bits, one for the next round
        first, second = _threefry(first, second, zero, zero)
        high, low = _threefry(own[:, None], other[:, None], zero, np.arange(n, dtype=np.uint32)[None])
        # Sorted with their places, so that equal words stay in order.
        ordered = np.sort((high ^ low).astype(np.uint64) << np.uint64(32) | places)
        orders = np.take_along_axis(orders, (ordered & mask).astype(np.int64), axis=1)
    return orders
