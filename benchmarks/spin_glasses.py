"""Spin glasses: log Z and every marginal of a 20x20 one with fields, and log Z and gradient of a planar 64x64 one without.

    python benchmarks/spin_glasses.py

First calls, compilation included, in processor time on one thread, after the imports. Goals: 1.5 s for both answers of the first model;
2 s and, with the gradient, 6 s for the second.
"""

import time

from timing import one_thread


def main() -> None:
    one_thread()
    import jax
    import numpy as np

    import lnz

    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)

    def glass(n: int) -> tuple[np.ndarray, np.ndarray]:
        edges = [pair for i in range(n) for j in range(n) for pair in _neighbours(i, j, n)]
        return np.array(edges), np.random.default_rng(0).choice([-1.0, 1.0], size=len(edges))

    edges, couplings = glass(20)
    model = lnz.Ising.sparse(edges, couplings, rng.normal(size=400), n=400)
    begun = time.process_time()
    estimate = lnz.log_partition(model, route=lnz.routes.Elimination())
    first = time.process_time() - begun
    marginals = lnz.marginals(model)
    both = time.process_time() - begun
    print(
        f"20x20 with fields: log Z {float(estimate.value):.10f} in {first:.2f} s, with {len(marginals)} marginals {both:.2f} s"
    )

    edges, couplings = glass(64)

    def log_z(couplings):
        estimate = lnz.log_partition(lnz.Ising.sparse(edges, couplings, n=64 * 64), route=lnz.routes.KacWard())
        return estimate.value

    begun = time.process_time()
    value = log_z(couplings)
    alone = time.process_time() - begun
    begun = time.process_time()
    _, gradient = jax.value_and_grad(log_z)(jax.numpy.asarray(couplings))
    gradient.block_until_ready()
    both = time.process_time() - begun
    off = abs(float(value) - 6144.355165254338)
    print(f"64x64 planar: log Z {float(value):.10f} (off by {off:.1g}) in {alone:.2f} s, with gradient {both:.2f} s")


def _neighbours(i: int, j: int, n: int) -> list[tuple[int, int]]:
    here = i * n + j
    return [(here, here + 1)] * (j + 1 < n) + [(here, here + n)] * (i + 1 < n)


if __name__ == "__main__":
    main()
