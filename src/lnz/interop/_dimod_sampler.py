"""A sampler for dimod: exact samples and log Z where the width of the graph allows, otherwise Gibbs chains and an estimate."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import numpy as np

from lnz._choose import choose
from lnz._core.numerics import check_whole_number
from lnz._core.packages import package
from lnz._partition import log_partition
from lnz.crf._decoding import exact_samples
from lnz.interop._dimod import from_bqm
from lnz.kernels._kernels import Gibbs, run_chains
from lnz.routes._exact.elimination import Elimination

dimod = package("dimod", "lnz.interop.DimodSampler")

_SECONDS = 20.0  # predicted work up to which sums are exact


class DimodSampler(dimod.Sampler):
    """Samples of p(x) ∝ exp(-β E_bqm(x)) for a binary quadratic model of dimod, with log Z in `info`.

    Where the width of the graph allows, samples are independent and exact; otherwise they are the ends of Gibbs chains from uniform states, and
    log Z is an estimate. `sample`, `sample_ising` and `sample_qubo` take β and the number of reads, as dimod's samplers do.

    Source: Dechter 1999, "Bucket elimination" (exact samples from the root of the elimination tree down).

    Example:
        >>> import lnz  # doctest: +SKIP
        >>> found = lnz.interop.DimodSampler().sample_ising({}, {"ab": -1.0}, beta=0.5, num_reads=10, seed=0)  # doctest: +SKIP
        >>> print(round(found.info["log_z"], 4), found.info["exact"])  # log(4 cosh 0.5)  # doctest: +SKIP
        1.5064 True
    """

    properties: ClassVar[dict[str, Any]] = {}
    parameters: ClassVar[dict[str, list[str]]] = {"beta": [], "num_reads": [], "sweeps": [], "seed": []}

    def sample(
        self, bqm: Any, *, beta: float = 1.0, num_reads: int = 100, sweeps: int = 1000, seed: int | None = None
    ) -> Any:
        """Samples of a model, as a `dimod.SampleSet`.

        Args:
            bqm: a `dimod.BinaryQuadraticModel`.
            beta: β, a finite number.
            num_reads: the number of samples.
            sweeps: Gibbs sweeps of a chain, where samples are not exact.
            seed: of the samples; by default another one at every call.

        Returns:
            The samples with their energies, and in `info`: `log_z` in nats (of exp(-β E_bqm), offset included), its `log_z_standard_error`,
            `log_z_lower`, `log_z_upper` and `guarantee`; whether the samples are `exact`; and `beta`.

        Raises:
            ValueError: for another kind of model, one without variables, or numbers that are not finite.
        """
        check_whole_number("num_reads", num_reads)
        model = from_bqm(bqm, beta=beta)
        energy = model.energy
        key = jax.random.key(int(np.random.default_rng(seed).integers(2**31)))
        sums = Elimination(max_seconds=_SECONDS)
        exact = sums.unsupported_reason(energy) is None
        if exact:
            states, log_z = exact_samples(energy, key, num_reads, route=sums), log_partition(energy, route=sums)
        else:
            route = choose(energy).route
            log_z = log_partition(energy, route=route, key=jax.random.fold_in(key, 1) if route.random else None)
            start = energy.space.uniform(jax.random.fold_in(key, 2), num_reads)
            states = run_chains(energy, Gibbs(), start, key, sweeps)
        figures = {"log_z": log_z.value, "log_z_lower": log_z.lower, "log_z_upper": log_z.upper}
        info: dict[str, Any] = {name: float(value) + model.constant for name, value in figures.items()}
        info |= {
            "log_z_standard_error": float(log_z.standard_error),
            "guarantee": log_z.guarantee,
            "exact": exact,
            "beta": beta,
        }
        labels = np.asarray(states).reshape(num_reads, -1).astype(np.int8)
        return dimod.SampleSet.from_samples_bqm((labels, model.variables), bqm, info=info)
