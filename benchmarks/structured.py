"""Forests and lattices in JAX against elimination in NumPy: log Z with its gradient, float64, one thread.

    python benchmarks/structured.py [--repeats 3] [--wide]

Times are warm, in turns; what compilation took before is printed apart, as process time. `--wide` adds a lattice of
20 x 20 spins. A chain is also summed by a plain scan of logsumexp, differentiated by JAX.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console

from timing import measure, one_thread

TREES, NODES, LOOP = 10_000, 20, 20


def compiled(console: Console, name: str, f: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """The function with these arguments, compiled, and how long that took."""
    import jax

    lowered = jax.jit(f).lower(*arguments)
    start = time.process_time()
    run = lowered.compile()
    console.print(f"{name}: {time.process_time() - start:.2f} s to compile")
    return lambda: run(*arguments)


def with_gradient(route: Any) -> Callable[[Any], Any]:
    import jax

    import lnz

    return jax.value_and_grad(lambda model: lnz.log_partition(model, route=route).value)


def plain_scan(model: Any) -> Any:
    """log Z of a chain of spins by logsumexp, with its gradient."""
    import jax
    import jax.numpy as jnp

    signs = jnp.asarray([-1.0, 1.0])

    def log_z(j: Any, h: Any) -> Any:
        def step(alpha: Any, now: Any) -> Any:
            j, h = now
            pair = j * signs[:, None] * signs + h * signs
            return jax.nn.logsumexp(alpha[:, None] + pair, axis=0), None

        return jax.nn.logsumexp(jax.lax.scan(step, h[0] * signs, (j[:-1], h[1:]))[0])

    return jax.value_and_grad(log_z, (0, 1))(model.couplings.strength[0], model.fields)


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--wide", action="store_true")
    arguments = parser.parse_args()

    import jax

    jax.config.update("jax_enable_x64", True)
    import lnz

    console, rng, n = Console(), np.random.default_rng(0), 10_000
    forest, layers, elimination = lnz.routes.Forest(), lnz.routes.TransferMatrix(), lnz.routes.Elimination()

    def table(title: str, candidates: dict[str, Callable[[], Any]], units: dict[str, float] | None = None) -> None:
        measure(candidates, repeats=arguments.repeats, title=title, units=units)

    chain = lnz.Ising.lattice((n,), rng.normal(size=(1, n)), rng.normal(size=n), periodic=False)
    hub = np.stack([np.zeros(n - 1, int), np.arange(1, n)], 1)
    star = lnz.Ising.sparse(hub, rng.normal(size=n - 1), rng.normal(size=n), n=n)
    candidates = {
        "Forest": compiled(console, "chain, Forest", with_gradient(forest), chain),
        "plain scan": compiled(console, "chain, plain scan", plain_scan, chain),
        "Elimination": lambda: with_gradient(elimination)(chain),
    }
    table(f"Chain of {n:,} spins", candidates)
    candidates = {
        "Forest": compiled(console, "star, Forest", with_gradient(forest), star),
        "Elimination": lambda: with_gradient(elimination)(star),
    }
    table(f"Star of {n:,} spins", candidates)

    edges = np.array([(rng.integers(i), i) for i in range(1, NODES)])
    couplings, fields = rng.normal(size=(TREES, NODES - 1)), rng.normal(size=(TREES, NODES, 3))
    tree = lambda j, h: lnz.Potts.sparse(edges, j, h, n=NODES, q=3)  # noqa: E731
    trees = jax.vmap(tree)(couplings, fields)
    few = [tree(couplings[i], fields[i]) for i in range(LOOP)]
    candidates = {
        "Forest, vmap": compiled(console, "trees, Forest", jax.vmap(with_gradient(forest)), trees),
        "Elimination, one by one": lambda: [with_gradient(elimination)(model) for model in few],
    }
    title = f"{TREES:,} trees of {NODES} variables with 3 values, a tree"
    table(title, candidates, {"Forest, vmap": TREES, "Elimination, one by one": LOOP})

    for width in (12, 16, 20) if arguments.wide else (12, 16):
        signs = rng.choice([-1.0, 1.0], size=(2, width, width))
        model = lnz.Ising.lattice((width, width), signs, 0.1 * rng.normal(size=(width, width)), periodic=False)
        candidates = {
            "TransferMatrix": compiled(console, f"width {width}, TransferMatrix", with_gradient(layers), model),
            "Elimination": lambda model=model: with_gradient(elimination)(model),
        }
        table(f"{width} x {width} spins, fields", candidates)


if __name__ == "__main__":
    main()
