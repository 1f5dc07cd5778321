"""Sweeps a second of discrete chains, and leapfrogs a second, against other packages and tuned loops: one thread, one run, process time.

    python benchmarks/sampling.py [--repeats 5] [--only torus64 torus1024 graph potts hmc build]

Jobs: an Ising torus 64x64 (1 and 32 chains; thrml), a torus 1024x1024 (PyTorch on two sublattices), a random 3-regular graph of
10,000 spins with 64 chains (PyTorch, colour classes), a Potts model of 50 sites, 21 states and 1,000 chains (adabmDCA's compiled loop),
Hamiltonian Monte Carlo on a perceptron in the plane (torchebm, ebmkit), and what it takes to build and compile a sweep. Peers that are not
installed are left out. lnz is timed with its default random bits (Threefry-20, those of stock JAX) and with `fast_key(key, bits="hash")`.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import networkx
import numpy as np

import lnz
from timing import measure, one_thread

WITH = {name: importlib.util.find_spec(name) is not None for name in ("thrml", "torch", "adabmDCA", "torchebm", "ebm")}


def ours(energy: lnz.Energy, v: Any, sweeps: int) -> dict[str, Callable[[], Any]]:
    run = jax.jit(lambda energy, key, v: lnz.kernels.run_chains(energy, lnz.kernels.Gibbs(), v, key, sweeps))
    keys = {"lnz": lnz.kernels.fast_key(0), "lnz, hash bits": lnz.kernels.fast_key(0, bits="hash")}
    return {name: partial(run, energy, key, v) for name, key in keys.items()}


def thrml_torus(length: int, coupling: float, chains: int, sweeps: int) -> Callable[[], Any]:
    from thrml import Block, SamplingSchedule, SpinNode, sample_states
    from thrml.models import IsingEBM, IsingSamplingProgram, hinton_init

    nodes = [[SpinNode() for _ in range(length)] for _ in range(length)]
    flat = [node for row in nodes for node in row]
    edges = [(nodes[i][j], nodes[(i + 1) % length][j]) for i in range(length) for j in range(length)]
    edges += [(nodes[i][j], nodes[i][(j + 1) % length]) for i in range(length) for j in range(length)]
    model = IsingEBM(flat, edges, jnp.zeros(len(flat)), jnp.full(len(edges), coupling), jnp.asarray(1.0))
    blocks = [Block([nodes[i][j] for i in range(length) for j in range(length) if (i + j) % 2 == p]) for p in (0, 1)]
    program = IsingSamplingProgram(model, blocks, [])
    schedule = SamplingSchedule(n_warmup=sweeps - 1, n_samples=1, steps_per_sample=1)
    start = hinton_init(jax.random.key(0), model, blocks, (chains,))
    keys = jax.random.split(jax.random.key(1), chains)
    run = jax.jit(jax.vmap(lambda key, start: sample_states(key, program, schedule, start, [], [Block(flat)])))
    return partial(run, keys, start)


def torch_torus(length: int, coupling: float, sweeps: int) -> Callable[[], Any]:
    """Two sublattices of floats; rows shifted by slices of a rolled copy."""
    import torch

    odd = (torch.arange(length) % 2 == 1)[:, None]
    parts = [torch.ones(length, length // 2) for _ in range(2)]

    def run() -> Any:
        with torch.no_grad():
            for _ in range(sweeps):
                for side in (0, 1):
                    x = parts[1 - side]
                    late = odd if side == 0 else ~odd
                    across = torch.where(late, torch.roll(x, -1, 1), torch.roll(x, 1, 1))
                    field = torch.roll(x, 1, 0).add_(torch.roll(x, -1, 0)).add_(x).add_(across).mul_(2 * coupling)
                    parts[side] = (torch.rand_like(field) < field.sigmoid_()).float().mul_(2).sub_(1)
        return parts

    return run


def torch_graph(edges: np.ndarray, strength: np.ndarray, classes: list[np.ndarray], chains: int, sweeps: int) -> Any:
    """Colour class after colour class; sites first, so that a neighbour's chains are one row."""
    import torch

    n = int(edges.max()) + 1
    near: list[list[tuple[int, float]]] = [[] for _ in range(n)]
    for (i, j), w in zip(edges.tolist(), strength.tolist(), strict=True):
        near[i].append((j, w))
        near[j].append((i, w))
    tables = [
        (
            torch.tensor(members),
            [torch.tensor([near[i][k][0] for i in members]) for k in range(3)],
            [torch.tensor([near[i][k][1] for i in members])[:, None] for k in range(3)],
        )
        for members in (c.tolist() for c in classes)
    ]
    x = torch.ones(n, chains)

    def run() -> Any:
        with torch.no_grad():
            for _ in range(sweeps):
                for members, others, weights in tables:
                    field = sum(w * x[o] for o, w in zip(others, weights, strict=True))
                    x[members] = (torch.rand_like(field) < torch.sigmoid(2 * field)).float().mul_(2).sub_(1)
        return x

    return run


def adabmdca(tables: np.ndarray, fields: np.ndarray, chains: int, sweeps: int) -> Callable[[], Any]:
    import torch
    from adabmDCA.sampling import gibbs_sampling

    parameters = {"bias": torch.tensor(fields), "coupling_matrix": torch.tensor(tables)}
    x = torch.nn.functional.one_hot(torch.zeros(chains, len(fields), dtype=torch.long), fields.shape[1]).float()
    return lambda: gibbs_sampling(x, parameters, sweeps)


def report(seconds: dict[str, float], updates: int) -> None:
    first = seconds["lnz"]
    for name, time_ in seconds.items():
        print(f"  {name:24}{updates / time_ / 1e9:8.3f} G updates/s, lnz is {time_ / first:6.2f} times as fast")


def torus64(repeats: int) -> None:
    energy = lnz.Ising.lattice((64, 64), 0.4, periodic=True)
    for chains, sweeps in ((1, 2000), (32, 100)):
        jobs = ours(energy, jnp.ones((chains, 64, 64)), sweeps)
        if WITH["thrml"]:
            jobs["thrml"] = thrml_torus(64, 0.4, chains, sweeps)
        seconds = measure(jobs, repeats=repeats, title=f"Ising torus 64x64, {chains} chains, {sweeps} sweeps")
        report(seconds, chains * sweeps * 64**2)


def torus1024(repeats: int) -> None:
    energy = lnz.Ising.lattice((1024, 1024), 0.44, periodic=True)
    jobs = ours(energy, jnp.ones((1, 1024, 1024)), 10)
    if WITH["torch"]:
        jobs["torch"] = torch_torus(1024, 0.44, 10)
    report(measure(jobs, repeats=repeats, title="Ising torus 1024x1024, 10 sweeps"), 10 * 1024**2)


def regular_graph() -> tuple[np.ndarray, np.ndarray]:
    edges = np.array(networkx.random_regular_graph(3, 10_000, seed=1).edges)
    return edges, np.random.default_rng(0).choice([-1.0, 1.0], len(edges)).astype(np.float32)


def graph(repeats: int) -> None:
    edges, strength = regular_graph()
    energy = lnz.Ising.sparse(edges, strength, n=10_000)
    jobs = ours(energy, jnp.ones((64, 10_000)), 10)
    if WITH["torch"]:
        classes = [np.flatnonzero(row) for row in energy.couplings.colours()]
        jobs["torch"] = torch_graph(edges, strength, classes, 64, 10)
    report(
        measure(jobs, repeats=repeats, title="3-regular graph, 10,000 spins, 64 chains, 10 sweeps"), 64 * 10 * 10_000
    )


def potts(repeats: int) -> None:
    rng, n, q = np.random.default_rng(0), 50, 21
    tables = 0.05 * rng.normal(size=(n, q, n, q)).astype(np.float32)
    tables = tables + tables.transpose(2, 3, 0, 1)
    tables[np.arange(n), :, np.arange(n)] = 0
    fields = rng.normal(size=(n, q)).astype(np.float32)
    jobs = ours(lnz.Potts(tables, fields, q=q), jnp.zeros((1000, n), jnp.int32), 10)
    if WITH["adabmDCA"]:
        jobs["adabmDCA"] = adabmdca(tables, fields, 1000, 10)
    report(measure(jobs, repeats=repeats, title="Potts, L = 50, q = 21, 1,000 chains, 10 sweeps"), 10 * 1000 * n)


def hmc(repeats: int) -> None:
    """2-128-128-1 units of SiLU and a normal law around them, 10 leapfrogs a move. Every package's own network with the same weights."""
    network = eqx.nn.MLP(2, "scalar", 128, 2, activation=jax.nn.silu, key=jax.random.key(0))
    energy = lnz.Tilted(network, lnz.Gaussian(np.zeros(2), np.ones(2)))
    kernel, leapfrogs, step = lnz.kernels.HamiltonianMonteCarlo(0.1, 10), 10, 0.1
    run = jax.jit(lnz.kernels.run_chains, static_argnums=(1, 4))
    for chains, moves in ((64, 100), (1024, 20)):
        x = np.random.default_rng(0).normal(size=(chains, 2)).astype(np.float32)
        jobs: dict[str, Callable[[], Any]] = {
            "lnz": partial(run, energy, kernel, lnz.kernels.fast_key(0), jnp.asarray(x), moves)
        }
        if WITH["torchebm"] or WITH["ebm"]:
            jobs |= torch_hmc(network, x, step, leapfrogs, moves)
        seconds = measure(
            jobs,
            repeats=repeats,
            title=f"HMC on a network in the plane, {chains} chains, {moves} moves of 10 leapfrogs",
        )
        for name, time_ in seconds.items():
            each = 1e6 * time_ / (moves * leapfrogs)
            print(
                f"  {name:24}{each:8.1f} µs a leapfrog of all chains, lnz is {time_ / seconds['lnz']:6.2f} times as fast"
            )


def torch_hmc(
    network: eqx.nn.MLP, x: np.ndarray, step: float, leapfrogs: int, moves: int
) -> dict[str, Callable[[], Any]]:
    import torch

    layers: list[torch.nn.Module] = []
    for layer in network.layers:
        linear = torch.nn.Linear(layer.in_features if layer.in_features != "scalar" else 1, np.size(layer.bias))
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(np.asarray(layer.weight).reshape(linear.weight.shape)))
            linear.bias.copy_(torch.tensor(np.asarray(layer.bias).reshape(-1)))
        layers += [linear, torch.nn.SiLU()]
    stack, start = torch.nn.Sequential(*layers[:-1]), torch.tensor(x)

    def value(y: Any) -> Any:
        return stack(y).squeeze(-1) + 0.5 * (y * y).sum(-1)

    jobs: dict[str, Callable[[], Any]] = {}
    if WITH["torchebm"]:
        from torchebm.core import BaseModel
        from torchebm.samplers import HamiltonianMonteCarlo

        class Model(BaseModel):
            def __init__(self) -> None:
                super().__init__()
                self.stack = stack

            def forward(self, y: Any) -> Any:
                return value(y)

        sampler = HamiltonianMonteCarlo(Model(), step_size=step, n_leapfrog_steps=leapfrogs)
        jobs["torchebm"] = lambda: sampler.sample(x=start, n_steps=moves)
    if WITH["ebm"]:
        import ebm

        class Plain(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stack = stack

            def forward(self, y: Any) -> Any:
                return value(y)

        chain = ebm.HMC(step_size=step, leapfrog_steps=leapfrogs, steps=moves)
        plain = Plain()
        jobs["ebmkit"] = lambda: chain.sample(plain, start)
    return jobs


def build(repeats: int) -> None:
    """Process time from the model to the first state: graph colouring, tracing and compiling."""
    edges, strength = regular_graph()
    models = {
        "lattice 64x64": lambda: (lnz.Ising.lattice((64, 64), 0.4, periodic=True), jnp.ones((1, 64, 64))),
        "odd torus 65x65": lambda: (lnz.Ising.lattice((65, 65), 0.4, periodic=True), jnp.ones((1, 65, 65))),
        "graph of 10,000": lambda: (lnz.Ising.sparse(edges, strength, n=10_000), jnp.ones((1, 10_000))),
    }
    for name, make in models.items():
        start = time.process_time()
        energy, v = make()
        jax.block_until_ready(ours(energy, v, 1)["lnz"]())
        print(f"{name:20} built, compiled and run once in {time.process_time() - start:.2f} s")


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    jobs = {"build": build, "torus64": torus64, "torus1024": torus1024, "graph": graph, "potts": potts, "hmc": hmc}
    parser.add_argument("--only", nargs="*", choices=jobs, default=list(jobs))
    options = parser.parse_args()
    for name in options.only:
        jobs[name](options.repeats)


if __name__ == "__main__":
    main()
