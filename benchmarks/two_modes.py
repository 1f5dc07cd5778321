"""Two modes far apart, of which data show one: what contrastive divergence misses, what the monitor says, and what tempering finds.

    python benchmarks/two_modes.py [--updates 4000]

Sixteen spins that pull each other into line, by couplings of 0.16 at the start: half of the model's mass is up and half is down. The data are
the up half: 500 of the model's own samples that have most of their spins up. CD's chains start there. Figures are exact, by enumeration: the
mean log p of the data in nats, and the mass of states with most spins down, of which the data have none.
"""

import argparse
import time

import numpy as np

from timing import one_thread

SPINS = 16


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=4000)
    options = parser.parse_args()
    import jax
    import jax.numpy as jnp
    import optax

    import lnz

    start = lnz.Ising(np.float32(0.16) * (1 - np.eye(SPINS, dtype=np.float32)), np.zeros(SPINS, np.float32))
    states = lnz.Spin(SPINS).decode(jnp.arange(2**SPINS))
    drawn = np.asarray(lnz.exact_samples(start, jax.random.key(0), 2000), np.float32)
    data, down = drawn[drawn.sum(axis=1) > 0][:500], np.asarray(states).sum(axis=1) < 0

    def far(energy):
        free = np.asarray(
            jax.jit(jax.vmap(lnz.capabilities.free_energy_of(energy)))(states.astype(jnp.float32)), np.float64
        )
        p = np.exp(-(free - free.min()))
        return p[down].sum() / p.sum()

    phases = {
        "none yet": None,
        "CD-1": lnz.learning.ContrastiveDivergence(1),
        "CD-10": lnz.learning.ContrastiveDivergence(10),
        "persistent, 200 chains": lnz.learning.PersistentChains(chains=200),
        "tempered, 9 x 50": lnz.learning.TemperedChains(chains=50, temperatures=8),
        "exact": lnz.learning.ExactPhase(lnz.routes.Enumeration()),
    }
    print("| negative phase | log-likelihood, nats per datum | mass of the far mode | alarms | s |")
    print("|---|---|---|---|---|")
    said = ""
    for name, phase in phases.items():
        energy, alarms, began = start, [], time.process_time()
        if phase is not None:
            fitted = lnz.fit(
                start, data, negative_phase=phase, optimizer=optax.sgd(optax.linear_schedule(0.01, 0, options.updates)),
                epochs=options.updates, batch_size=500, evaluate_every=options.updates, monitor=lnz.learning.Monitor(share=0.25),
                key=jax.random.key(0),
            )  # fmt: skip
            energy, alarms = fitted.energy, [alarm for look in fitted.reports for alarm in look.alarms]
        likelihood = lnz.log_likelihood(energy, data, route=lnz.routes.Enumeration()).value
        heard = ", ".join(f"{alarm.name} {alarm.step}" for alarm in alarms) or "none"
        print(
            f"| {name} | {likelihood:.3f} | {far(energy):.4f} | {heard} | {time.process_time() - began:.0f} |",
            flush=True,
        )
        if name == "CD-1" and alarms:
            said = str(alarms[0])
    print(f"\n{said}")


if __name__ == "__main__":
    main()
