"""Belief propagation and mean field on a batch of grids, value and gradient, against PyTorch; one thread, float32.

    python benchmarks/field_inference.py [--batch 64] [--side 10] [--labels 11] [--repeats 5]

20 sweeps of damped belief propagation, of which the Bethe value and its derivative by every table are asked, and 10 parallel updates of mean
field with the value and its derivative. PyTorch takes part where it can be imported: the same sweeps, batched, with `logsumexp`, as one writes
them; its derivative is that by beliefs too, so nothing is differentiated through. `products` are the sums over the edges' tables alone, 20 times
both ways: the least that any implementation with these messages computes. Edges have a table each, or one for each direction.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from timing import measure, one_thread


def lnz_jobs(unary: np.ndarray, tables: np.ndarray) -> dict[str, Callable[[], Any]]:
    import jax
    import jax.numpy as jnp

    import lnz
    from lnz.routes._bounds.field_messages import products

    shared = tables.ndim == 3
    grid = lnz.crf.Grid(unary.shape[1:3])

    def value(route: lnz.Route) -> Callable[..., Any]:
        one = lambda u, t: lnz.log_partition(lnz.RandomField(grid, u, t), route=route).value  # noqa: E731
        return jax.value_and_grad(lambda u, t: jax.vmap(one, (0, None if shared else 0))(u, t).sum(), (0, 1))

    never = 1e-30
    jobs = {
        "belief propagation": value(
            lnz.routes.BeliefPropagation(schedule="parallel", damping=0.5, max_sweeps=20, tolerance=never)
        ),
        "mean field": value(lnz.routes.MeanField(schedule="parallel", damping=0.5, max_sweeps=10, tolerance=never)),
    }
    arguments = jnp.asarray(unary), jnp.asarray(tables)
    made = {}
    for name, f in jobs.items():
        begun = time.process_time()
        compiled = jax.jit(f).lower(*arguments).compile()
        print(f"  {name}: compiled in {time.process_time() - begun:.2f} s")
        made[name] = lambda compiled=compiled: compiled(*arguments)
    b, k, edges = len(unary), unary.shape[-1], len(grid.edges)
    weights = jnp.ones((k, k, 1) if shared else (b, k, k, edges))
    rows = jnp.ones((b, k, edges))

    @jax.jit
    def least(weights: Any, rows: Any) -> Any:
        def sweep(_: Any, pair: Any) -> Any:
            first, second = pair
            both = jax.vmap(
                lambda w, x, y: (products(w, x), products(jnp.swapaxes(w, 0, 1), y)), (None if shared else 0, 0, 0)
            )
            return both(weights, first, second)

        return jax.lax.fori_loop(0, 20, sweep, (rows, rows))

    made["20 times the products alone"] = lambda: least(weights, rows)
    return made


def torch_jobs(unary: np.ndarray, tables: np.ndarray) -> dict[str, Callable[[], Any]]:
    import torch

    torch.set_num_threads(1)
    b, h, w, k = unary.shape
    number = np.arange(h * w).reshape(h, w)
    edges = np.concatenate(
        [
            np.stack([number[:-1].ravel(), number[1:].ravel()], 1),
            np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()], 1),
        ]
    )
    i, j = torch.from_numpy(edges.T.copy())
    of = np.repeat([0, 1], [(h - 1) * w, h * (w - 1)])
    t = torch.from_numpy(tables if tables.ndim == 4 else np.broadcast_to(tables[of], (b, len(of), k, k)).copy())
    u = torch.from_numpy(unary.reshape(b, h * w, k))

    def collected(first: Any, second: Any) -> Any:
        return u.index_add(1, i, first).index_add(1, j, second)

    def propagation() -> Any:
        with torch.no_grad():
            first, second = torch.zeros(b, len(i), k), torch.zeros(b, len(i), k)
            for _ in range(20):
                total = collected(first, second)
                to = torch.logsumexp(t + (total[:, i] - first)[..., None], 2)
                back = torch.logsumexp(t + (total[:, j] - second)[:, :, None], 3)
                first = 0.5 * (first + back - back.amax(2, keepdim=True))
                second = 0.5 * (second + to - to.amax(2, keepdim=True))
            total = collected(first, second)
            joint = t + (total[:, i] - first)[..., None] + (total[:, j] - second)[:, :, None]
            degrees = torch.bincount(torch.cat([i, j]), minlength=h * w)
            of_nodes, of_edges = torch.logsumexp(total, 2), torch.logsumexp(joint, (2, 3))
            value = of_edges.sum(1) + ((1 - degrees) * of_nodes).sum(1)
            return value, torch.softmax(total, 2), torch.exp(joint - of_edges[..., None, None])

    def mean_field() -> Any:
        with torch.no_grad():
            q = torch.softmax(u, 2)
            for _ in range(10):
                to, back = torch.einsum("bekl,bek->bel", t, q[:, i]), torch.einsum("bekl,bel->bek", t, q[:, j])
                q = 0.5 * (q + torch.softmax(collected(back, to), 2))
            to = torch.einsum("bekl,bek->bel", t, q[:, i])
            value = (q * (u - q.log())).sum((1, 2)) + (to * q[:, j]).sum((1, 2))
            return value, q, q[:, i][..., None] * q[:, j][:, :, None]

    return {"PyTorch, belief propagation": propagation, "PyTorch, mean field": mean_field}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--side", type=int, default=10)
    parser.add_argument("--labels", type=int, default=11)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    one_thread()
    b, n, k = options.batch, options.side, options.labels
    rng = np.random.default_rng(0)
    unary = rng.normal(size=(b, n, n, k)).astype(np.float32)
    for name, shape in (("a table an edge", (b, 2 * n * (n - 1), k, k)), ("a table a direction", (2, k, k))):
        tables = 0.5 * rng.normal(size=shape).astype(np.float32)
        print(f"{b} grids of {n} x {n}, {k} labels, {name}")
        jobs = lnz_jobs(unary, tables)
        if importlib.util.find_spec("torch"):
            peers = torch_jobs(unary, tables)
            for (ours, call), theirs in zip(list(jobs.items())[:2], peers.values(), strict=True):
                value, other = float(call()[0]), float(theirs()[0].sum())
                print(f"  {ours}: {value:.6g}, PyTorch {other:.6g}")
            jobs |= peers
        measure(jobs, repeats=options.repeats, title=name)


if __name__ == "__main__":
    main()
