"""What random bits cost a sampler: uniforms a second, and block Gibbs sweeps against their matrix products alone.

    python benchmarks/random_bits.py [--repeats 7] [--ideas]

The sweeps are those of a 784x500 RBM with 500 chains, float32, one thread, ten in a scan. Goal: a PCD-10 update
within 1.35 of its matrix products alone. Three things decide:

- **the key type**: `lnz._core.random.fast_key(key)` gives stock JAX's bits without its loop;
- **the type of the state**: where both layers leave the scan as `bool`, XLA stores the samples as bytes, and LLVM then
  takes four times as many elements a step, so that the rounds of several blocks overlap. The bits are the same;
- **the vector width**: XLA asks for 256 bits. `jax.jit(f, compiler_options={"xla_cpu_prefer_vector_width": 512})`
  nearly doubles the speed of the bits where the processor has AVX-512.

`--ideas` adds what was tried and is not worth having: other ways of writing the comparison, two 16-bit numbers from a
word, and both words of every Threefry block. The last would halve the work, but XLA's CPU fusions have one result:
each word is computed by its own copy of the rounds.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl, threefry_prng_impl

from lnz._core import random
from timing import measure, one_thread

VISIBLE, HIDDEN, CHAINS, SWEEPS, DRAWS = 784, 500, 500, 10, 20
WIDE = {"xla_cpu_prefer_vector_width": 512}
TYPES = ("threefry", "threefry13", "hash")
Sample = Callable[[Any, Any], Any]  # key, logits -> True with probability sigmoid(logits)


def bernoulli(key: Any, logits: Any) -> Any:
    return jax.random.bernoulli(key, jax.nn.sigmoid(logits))


def chain(state: tuple, weights: tuple, key: Any, sample: Sample = bernoulli) -> tuple:
    """Ten sweeps: hidden given visible, visible given hidden. The state keeps its dtype."""
    w, b, c = weights

    def sweep(state: tuple, i: Any) -> tuple:
        (v, h), (key_h, key_v) = state, jax.random.split(jax.random.fold_in(key, i))
        h = sample(key_h, v.astype(w.dtype) @ w + c).astype(h.dtype)
        v = sample(key_v, h.astype(w.dtype) @ w.T + b).astype(v.dtype)
        return (v, h), None

    return jax.lax.scan(sweep, state, jnp.arange(SWEEPS))[0]


def update(state: tuple, weights: tuple, data: Any, key: Any) -> tuple:
    """One PCD-10 update: chains, both phases with the hidden units in closed form, a gradient step."""
    state, (w, _, c) = chain(state, weights, key), weights
    v = state[0].astype(w.dtype)
    h_data, h = jax.nn.sigmoid(data @ w + c), jax.nn.sigmoid(v @ w + c)
    gradient = (data.T @ h_data - v.T @ h, (data - v).sum(0, keepdims=True), (h_data - h).sum(0, keepdims=True))
    rate = np.float32(1e-3 / CHAINS)
    return state, tuple(parameter + rate * step for parameter, step in zip(weights, gradient, strict=True))


def products(v: Any, w: Any) -> Any:
    """The matrix products of the chain alone."""
    return jax.lax.scan(lambda v, _: ((v @ w) @ w.T, None), v, length=SWEEPS)[0]


def update_products(v: Any, w: Any, data: Any) -> Any:
    """The matrix products of the update alone: the chain's and four more."""
    v = products(v, w)
    return v, data.T @ (data @ w), v.T @ (v @ w)


def uniforms(key: Any) -> Any:
    """Twenty arrays of uniforms, each used at once and never stored."""

    def draw(total: Any, i: Any) -> tuple:
        u = jax.random.uniform(jax.random.fold_in(key, i), total.shape, jnp.float32)
        return total + (u < np.float32(0.3)).astype(jnp.float32), None

    return jax.lax.scan(draw, jnp.zeros((CHAINS, VISIBLE), jnp.float32), jnp.arange(DRAWS))[0]


def both_words(key: Any, width: int, shape: tuple) -> Any:
    """Bits that use both words of a Threefry block: one in the first half of the array, one in the second."""
    half = (shape[0] // 2, *shape[1:])
    return jnp.concatenate(random._threefry(key[0], key[1], jnp.zeros(half, jnp.uint32), random._counter(half)))


def ideas() -> dict[str, Sample]:
    """Ways of sampling a unit that were tried; all but the halves have the same law up to rounding."""

    def uniform(key: Any, x: Any) -> Any:
        return jax.random.uniform(key, x.shape, x.dtype)

    def words(key: Any, shape: tuple) -> Any:
        return jax.random.bits(key, shape, jnp.uint32)

    def threshold(key: Any, x: Any) -> Any:
        limit = (jax.nn.sigmoid(x) * np.float32(2**24)).astype(jnp.int32)
        return (words(key, x.shape) >> np.uint32(8)).astype(jnp.int32) < limit

    def halves(key: Any, x: Any) -> Any:
        word = words(key, (x.shape[0] // 2, *x.shape[1:]))
        u = jnp.concatenate([word & np.uint32(0xFFFF), word >> np.uint32(16)]).astype(jnp.float32)
        return u * np.float32(2**-16) < jax.nn.sigmoid(x)

    return {
        "u (1 + exp(-x)) < 1": lambda key, x: uniform(key, x) * (1 + jnp.exp(-x)) < 1,
        "2u - 1 < tanh(x/2)": lambda key, x: 2 * uniform(key, x) - 1 < jnp.tanh(x / 2),
        "log(u / (1-u)) < x": lambda key, x: jax.random.logistic(key, x.shape, x.dtype) < x,
        "whole numbers against a threshold": threshold,
        "two 16-bit halves of a word": halves,
    }


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--ideas", action="store_true")
    options = parser.parse_args()

    stock = jax.random.key(0)
    keys = {"stock": stock} | {name: random.fast_key(stock, bits=name) for name in TYPES}
    generators = keys | {"stock, rbg": jax.random.key(0, impl="rbg")}
    if options.ideas:
        functions = {name: getattr(threefry_prng_impl, name) for name in ("key_shape", "seed", "split", "fold_in")}
        generators["both words"] = jax.random.key(0, impl=define_prng_impl(random_bits=both_words, **functions))

    jobs = {}
    for name, key in generators.items():
        for width, flags in (("", None), (", 512 bits", WIDE)):
            jobs[name + width] = partial(jax.jit(uniforms, compiler_options=flags), key)
    seconds = measure(jobs, repeats=options.repeats, title=f"{DRAWS} x {CHAINS} x {VISIBLE} uniforms")
    for name, time in seconds.items():
        print(f"{name:24}{DRAWS * CHAINS * VISIBLE / time / 1e9:6.2f} G uniforms/s")

    source = np.random.default_rng(0)
    w = jnp.asarray(0.05 * source.normal(size=(VISIBLE, HIDDEN)), jnp.float32)
    weights = (w, jnp.full((1, VISIBLE), -1, jnp.float32), jnp.zeros((1, HIDDEN), jnp.float32))
    start = jnp.asarray(source.random((CHAINS, VISIBLE)) < 0.3)
    data, small = start.astype(jnp.float32), 1e-3 * start.astype(jnp.float32)
    states = {kind: (start.astype(kind), jnp.zeros((CHAINS, HIDDEN), kind)) for kind in ("float32", "bool")}

    jobs: dict[str, Callable[[], Any]] = {"matrix products alone": partial(jax.jit(products), small, w)}
    for name, key in keys.items():
        for kind, state in states.items():
            for width, flags in (("", None), (", 512 bits", WIDE)):
                sweeps = jax.jit(chain, compiler_options=flags)
                jobs[f"{name}, {kind}{width}"] = partial(sweeps, state, weights, key)
    measure(jobs, repeats=options.repeats, title="ten sweeps")

    jobs = {"matrix products alone": partial(jax.jit(update_products), small, w, data)}
    for name, key in keys.items():
        for kind, state in states.items():
            jobs[f"{name}, {kind}"] = partial(jax.jit(update), state, weights, data, key)
    wide = jax.jit(update, compiler_options=WIDE)
    jobs["threefry, bool, 512 bits"] = partial(wide, states["bool"], weights, data, keys["threefry"])
    jobs["threefry, float32, 512 bits"] = partial(wide, states["float32"], weights, data, keys["threefry"])
    measure(jobs, repeats=options.repeats, title="PCD-10, one update")

    if options.ideas:
        jobs = {"matrix products alone": partial(jax.jit(products), small, w)}
        for kind, state in states.items():
            for name, sample in {"u < sigmoid(x)": bernoulli, **ideas()}.items():
                jobs[f"{name}, {kind}"] = partial(
                    jax.jit(partial(chain, sample=sample)), state, weights, keys["threefry"]
                )
            jobs[f"both words, {kind}"] = partial(jax.jit(chain), state, weights, generators["both words"])
        measure(jobs, repeats=options.repeats, title="ideas, threefry: ten sweeps")


if __name__ == "__main__":
    main()
