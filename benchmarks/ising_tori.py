"""log Z of Ising tori at β_c by annealing from rows that are summed exactly, against Kaufman's formula: errors, claimed errors, seconds.

    python benchmarks/ising_tori.py [--sizes 16,64] [--seeds 8]

Process time of one thread; the first run of a size also compiles.
"""

from __future__ import annotations

import argparse
import math
import time

import jax

import lnz

SETTINGS = {16: (8_000, 256), 64: (24_000, 192)}  # temperatures and chains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="16,64")
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args()
    for size in map(int, options.sizes.split(",")):
        torus = lnz.Ising.lattice((size, size), math.log(1 + math.sqrt(2)) / 2, 0.0, periodic=True)
        truth = float(lnz.log_partition(torus, route=lnz.routes.Torus()).value)
        temperatures, chains = SETTINGS[size]
        route = lnz.routes.AnnealedImportanceSampling.from_base(
            lnz.routes.subgraph_base(torus), temperatures=temperatures, chains=chains
        )
        for seed in range(options.seeds):
            began = time.process_time()
            found = lnz.log_partition(torus, route=route, key=jax.random.key(seed))
            error, held = float(found.value) - truth, float(found.lower) <= truth <= float(found.upper)
            print(
                f"{size} x {size}, seed {seed}: error {error:+.4f}, claimed {float(found.standard_error):.4f}, "
                f"interval {'holds' if held else 'misses'}, {time.process_time() - began:.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
