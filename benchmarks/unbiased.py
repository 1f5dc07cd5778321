"""The unbiased gradient: the mean of many coupled estimates of ∇ log Z against the exact one, on models of four kinds.

    python benchmarks/unbiased.py [--estimates 100000] [--models rbm,ising,potts,mixture] [--seed 0]

Columns: `distance`, ‖mean - exact‖ in units of its standard error √(Σ_i se_i²), 1 on average; `largest`, the largest |mean - exact| / se of
a single parameter, and the number of parameters; the same distance for as many chains without their twins (the same burn-in and length, the
bias left in); meeting times in moves: mean, 99 %, largest; moves of chains per estimate; and seconds of one processor.
"""

import argparse
import time
from typing import Any

from timing import one_thread


def models() -> dict[str, Any]:
    """Energies with kernels under which chains meet; nothing in them is symmetric."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import lnz

    rng = np.random.default_rng(0)

    class Mixture(lnz.capabilities.Annealable):
        """E = -log Σ_k exp(a_k - ‖x - μ_k‖² / 2 s_k²): Z = Σ_k 2π s_k² exp(a_k)."""

        levels: jax.Array
        means: jax.Array
        scales: jax.Array

        @property
        def space(self) -> Any:
            return lnz.Real(2)

        def __call__(self, x: Any) -> Any:
            return -jax.nn.logsumexp(self.levels - jnp.sum((x[None] - self.means) ** 2, axis=1) / (2 * self.scales**2))

        def base(self) -> Any:
            return lnz.Gaussian([0.0, 0.0], [0.5, 0.5])

        def exact(self) -> Any:
            """∇ log Z, by the closed form."""
            log_z = lambda e: jax.nn.logsumexp(e.levels + 2 * jnp.log(e.scales))  # noqa: E731
            return jax.grad(log_z)(self)

    mixture = Mixture(
        jnp.asarray([0.0, 0.7, -0.4]), jnp.asarray([[-1.2, 0.0], [1.0, 0.6], [0.3, -1.4]]), jnp.asarray([0.6, 0.8, 0.5])
    )
    fields = rng.normal(size=(8, 8)) * 0.2
    return {
        "rbm": (
            "RBM 16x16, weights N(0, 0.6²)",
            lnz.RBM.from_parameters(
                rng.normal(size=(16, 16)) * 0.6, rng.normal(size=16) * 0.3, rng.normal(size=16) * 0.3
            ),
            lnz.kernels.Gibbs(), 2, 3, 1,
        ),
        "ising": (
            "Ising 8x8 torus, J 0.35, fields N(0, 0.2²)",
            lnz.Ising.lattice((8, 8), 0.35, fields, periodic=True),
            lnz.kernels.Gibbs(), 3, 5, 1,
        ),
        "potts": (
            "Potts 4x4 torus, 3 states, J 0.8, fields N(0, 0.3²)",
            lnz.Potts.lattice((4, 4), 0.8, rng.normal(size=(4, 4, 3)) * 0.3, q=3, periodic=True),
            lnz.kernels.Gibbs(), 3, 5, 1,
        ),
        "mixture": ("mixture of 3 normal laws in the plane, MALA 0.15", mixture, lnz.kernels.Langevin(0.15), 5, 20, 5),
    }  # fmt: skip


def measure(name: str, estimates: int, seed: int) -> str:
    """One row of the table."""
    import equinox as eqx
    import jax
    import numpy as np
    from jax.flatten_util import ravel_pytree

    import lnz
    from lnz.kernels._kernels import moved_chains

    title, energy, kernel, burn_in, length, lag = models()[name]
    exact = energy.exact() if hasattr(energy, "exact") else lnz.choose(energy).route.mean_gradient(energy, None)
    row = lambda tree: ravel_pytree(eqx.filter(tree, eqx.is_inexact_array))[0]  # noqa: E731
    exact = np.asarray(row(exact))

    def f(v: Any) -> Any:
        return row(eqx.filter_grad(lambda e: -lnz.capabilities.free_energy_of(e)(v))(energy))

    began = time.process_time()
    found = lnz.kernels.unbiased_expectation(
        energy, f, jax.random.key(seed), kernel=kernel, burn_in=burn_in, length=length, lag=lag, estimates=estimates,
        max_moves=100_000,
    )  # fmt: skip
    seconds = time.process_time() - began
    off, se = np.asarray(found.value) - exact, np.asarray(found.standard_error)
    kept = se > 0
    times = np.asarray(found.diagnostics["meeting_times"])

    @jax.jit
    def plain(key: Any) -> Any:
        """The means of single chains, burn-in and length alike."""
        start = energy.base().sample(key, 1000)
        if burn_in:
            start = moved_chains(energy, kernel, jax.random.fold_in(key, 1), start, burn_in)[0]

        def body(v: Any, key: Any) -> Any:
            return moved_chains(energy, kernel, key, v, 1)[0], jax.vmap(f)(v)

        return jax.lax.scan(body, start, jax.random.split(jax.random.fold_in(key, 2), length))[1].mean(axis=0)

    single = np.concatenate([np.asarray(plain(jax.random.key(seed + 1 + i))) for i in range(max(2, estimates // 1000))])
    rest = single.mean(axis=0) - exact
    rest_se = single.std(axis=0, ddof=1) / np.sqrt(len(single))
    distance = np.linalg.norm(off) / np.linalg.norm(se)
    without = np.linalg.norm(rest) / np.linalg.norm(rest_se)
    moves = float(found.diagnostics["moves"]) / estimates
    return (
        f"| {title} | {distance:.2f} | {np.abs(off[kept] / se[kept]).max():.2f} of {int(kept.sum())} | {without:.1f} "
        f"| {times.mean():.1f}, {np.quantile(times, 0.99):.0f}, {times.max()} | {moves:.0f} | {seconds:.0f} |"
    )


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimates", type=int, default=100_000)
    parser.add_argument("--models", default="rbm,ising,potts,mixture")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import jax

    jax.config.update("jax_enable_x64", True)
    print("| model | distance | largest | without twins | meeting: mean, 99 %, largest | moves an estimate | s |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models.split(","):
        print(measure(name, options.estimates, options.seed), flush=True)


if __name__ == "__main__":
    main()
