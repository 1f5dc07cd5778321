"""A CRF layer in PyTorch, log-likelihood and gradient: lnz.torch.CRF against the same sum in JAX alone and pytorch-crf; one thread, float32.

    uv run --group faces python benchmarks/torch_crf.py

Bars: lnz.torch within 1.5 times JAX alone, and pytorch-crf at least 4 times lnz.torch at 32 x 100 x 20, 8 times at 64 x 512 x 50.
"""

import sys
import warnings

import timing

SHAPES = {(32, 100, 20): 4, (64, 512, 50): 8}
FROM_JAX = 1.5


def main() -> None:
    timing.one_thread()
    import jax
    import torch
    import torchcrf

    import lnz
    import lnz.torch

    warnings.filterwarnings("ignore", message="where received a uint8 condition", category=UserWarning)

    def nats(parameters, tags):
        emissions, transitions, start, end = parameters

        def one(emissions, tags):
            return lnz.crf.log_probability(lnz.LinearChain(emissions, transitions, start=start, end=end), tags)

        return jax.vmap(one)(emissions, tags).sum()

    alone = jax.jit(jax.value_and_grad(nats))
    missed = []
    print(timing.machine(), f"torch {torch.__version__}", sep=", ")
    for (batch, length, tags), bar in SHAPES.items():
        torch.manual_seed(0)
        emissions, labels = torch.randn(batch, length, tags), torch.randint(tags, (batch, length))
        theirs, ours = torchcrf.CRF(tags, batch_first=True), lnz.torch.CRF(tags, batch_first=True)
        ours.load_state_dict(theirs.state_dict())
        tables = ours.transitions, ours.start_transitions, ours.end_transitions
        arrays = tuple(jax.numpy.asarray(x.detach().numpy()) for x in (emissions, *tables))
        integers = jax.numpy.asarray(labels.int().numpy())

        def step(crf, emissions=emissions, labels=labels):
            leaf = emissions.detach().requires_grad_()
            crf.zero_grad()
            value = crf(leaf, labels)
            value.backward()
            return value.item(), leaf.grad

        value, gradient = step(ours)
        expected, wanted = step(theirs)
        assert abs(value - expected) < 1e-5 * abs(expected), (value, expected)
        assert (gradient - wanted).abs().max() < 1e-3, "pytorch-crf adds scores of hundreds of steps in float32"
        seconds = timing.measure(
            {
                "lnz.torch": lambda step=step, crf=ours: step(crf),
                "JAX alone": lambda arrays=arrays, integers=integers: alone(arrays, integers),
                "pytorch-crf": lambda step=step, crf=theirs: step(crf),
            },
            title=f"{batch} x {length} x {tags}",
        )
        overhead, gain = (
            seconds["lnz.torch"] / seconds["JAX alone"],
            seconds["pytorch-crf"] / seconds["lnz.torch"],
        )
        print(
            f"lnz.torch takes {overhead:.2f} times JAX alone (bar {FROM_JAX}); pytorch-crf {gain:.1f} times lnz.torch (bar {bar})"
        )
        missed += [(batch, length, tags)] if overhead > FROM_JAX or gain < bar else []
    sys.exit(f"missed at {missed}" if missed else 0)


if __name__ == "__main__":
    main()
