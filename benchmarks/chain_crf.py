"""Linear-chain CRFs: log Z with its gradient, Viterbi, marginals, samples, against other libraries and a C kernel; one thread, float32.

    python benchmarks/chain_crf.py [--repeats 7] [--sizes 100,20,32 512,50,64 40,100,32] [--memory]

Peers that can be imported take part: pytorch-crf, torch-struct, SynJax (from its repository), and python-crfsuite,
which is timed by a pass of its training on data with a feature for every label's emission. The C kernel is compiled here with
`cc -O3 -march=native`: it has no masks and no guard against underflow. Goals at T=100, K=20, B=32: at least 15 times as fast as
pytorch-crf, 5 times as SynJax, within 3 of the C kernel. `--memory`: the peak at T=100,000, K=50, B=1 beside the log-potentials (20 MB, as
is their gradient), of a compiled call in a process of its own, without and with `recompute`.
"""

import argparse
import ctypes
import importlib.util
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from timing import measure, one_thread, peak_memory, report_job

HERE = Path(__file__).parent


class Job(NamedTuple):
    emissions: np.ndarray  # (B, T, K)
    transitions: np.ndarray  # (K, K)


def job(t: int, k: int, b: int) -> Job:
    rng = np.random.default_rng(0)
    return Job(rng.normal(size=(b, t, k)).astype(np.float32), rng.normal(size=(k, k)).astype(np.float32))


def reference(work: Job) -> tuple[float, np.ndarray, np.ndarray]:
    """Σ log Z and its gradient in float64, by logarithms in NumPy."""
    e, w = work.emissions.astype(float), work.transitions.astype(float)
    add = lambda x, axis: np.logaddexp.reduce(x, axis)  # noqa: E731
    alpha, beta = [e[:, 0]], [np.zeros_like(e[:, 0])]
    for t in range(1, e.shape[1]):
        alpha.append(add(alpha[-1][:, :, None] + w, 1) + e[:, t])
    for t in range(e.shape[1] - 1, 0, -1):
        beta.append(add(w + (beta[-1] + e[:, t])[:, None], 2))
    beta = beta[::-1]
    log_z = add(alpha[-1], 1)
    nodes = np.exp(np.stack(alpha, 1) + np.stack(beta, 1) - log_z[:, None, None])
    pairs = sum(
        np.exp(alpha[t - 1][:, :, None] + w + (beta[t] + e[:, t])[:, None] - log_z[:, None, None]).sum(0)
        for t in range(1, e.shape[1])
    )
    return float(log_z.sum()), nodes, pairs


def lnz_jobs(work: Job) -> dict[str, Callable[[], Any]]:
    import jax

    import lnz

    e, w = jax.numpy.asarray(work.emissions), jax.numpy.asarray(work.transitions)
    keys = jax.random.split(jax.random.key(0), len(e))
    each = lambda f: lambda e, w, *more: jax.vmap(lambda e, *x: f(lnz.LinearChain(e, w), *x))(e, *more)  # noqa: E731
    log_z = each(lambda chain: lnz.log_partition(chain).value)
    jobs = {
        "log Z, gradient": (jax.value_and_grad(lambda e, w: log_z(e, w).sum(), (0, 1)), (e, w)),
        "log Z": (log_z, (e, w)),
        "Viterbi": (each(lnz.map_state), (e, w)),
        "marginals": (each(lnz.marginals), (e, w)),
        "samples": (each(lambda chain, key: lnz.exact_samples(chain, key, 1)), (e, w, keys)),
    }
    made = {}
    for name, (f, arguments) in jobs.items():
        begun = time.process_time()
        compiled = jax.jit(f).lower(*arguments).compile()
        print(f"  lnz, {name}: compiled in {time.process_time() - begun:.2f} s")
        made[name] = lambda compiled=compiled, arguments=arguments: compiled(*arguments)
    return made


def c_kernel(work: Job) -> Callable[[], Any]:
    folder = tempfile.mkdtemp()
    command = ["cc", "-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", f"{folder}/kernel.so", HERE / "chain_kernel.c", "-lm"], check=True)
    run = ctypes.CDLL(f"{folder}/kernel.so").chain_log_z
    run.restype = ctypes.c_double
    b, t, k = work.emissions.shape
    address = lambda x: ctypes.c_void_p(x.ctypes.data)  # noqa: E731

    def call() -> tuple[float, np.ndarray, np.ndarray]:
        nodes, pairs = np.empty_like(work.emissions), np.empty_like(work.transitions)
        return run(*map(address, (work.emissions, work.transitions, nodes, pairs)), b, t, k), nodes, pairs

    return call


def pytorch_crf(work: Job) -> dict[str, Callable[[], Any]]:
    """pytorch-crf: its loss less the score of the labels is log Z, so that its loss is what is timed; start and end are 0."""
    import torch
    from torchcrf import CRF

    b, t, k = work.emissions.shape
    crf = CRF(k, batch_first=True)
    with torch.no_grad():
        crf.transitions.copy_(torch.tensor(work.transitions))
        crf.start_transitions.zero_()
        crf.end_transitions.zero_()
    emissions = torch.tensor(work.emissions, requires_grad=True)
    tags = torch.zeros((b, t), dtype=torch.long)

    def gradient() -> tuple[float, Any, Any]:
        emissions.grad = crf.transitions.grad = None
        loss = -crf(emissions, tags, reduction="sum")
        loss.backward()
        nodes, pairs = emissions.grad.clone(), crf.transitions.grad.clone()  # pyright: ignore[reportOptionalMemberAccess]
        nodes[:, :, 0] += 1
        pairs[0, 0] += b * (t - 1)
        score = work.emissions[:, :, 0].sum(dtype=float) + b * (t - 1) * float(work.transitions[0, 0])
        return loss.item() + score, nodes, pairs

    return {"log Z, gradient": gradient, "Viterbi": lambda: torch.tensor(crf.decode(emissions.detach()))}


def torch_struct(work: Job) -> dict[str, Callable[[], Any]]:
    """torch-struct: `LinearChainCRF` wants the potentials of every pair, [to, from]: building them is in the time."""
    import torch
    import torch_struct as structured

    emissions = torch.tensor(work.emissions, requires_grad=True)
    transitions = torch.tensor(work.transitions, requires_grad=True)

    def law() -> Any:
        pairs = transitions.T + emissions[:, 1:, :, None]
        return structured.LinearChainCRF(torch.cat([pairs[:, :1] + emissions[:, :1, None, :], pairs[:, 1:]], 1))

    def gradient() -> tuple[float, Any, Any]:
        emissions.grad = transitions.grad = None
        total = law().partition.sum()
        total.backward()
        return total.item(), emissions.grad, transitions.grad

    return {"log Z, gradient": gradient, "Viterbi": lambda: law().argmax, "marginals": lambda: law().marginals}


def synjax(work: Job) -> dict[str, Callable[[], Any]]:
    """SynJax: `LinearChainCRF` of the potentials of every pair, jitted; building them is in the time."""
    import jax
    import synjax as structured  # pyright: ignore[reportMissingImports]

    e, w = jax.numpy.asarray(work.emissions), jax.numpy.asarray(work.transitions)

    def law(e: Any, w: Any) -> Any:
        first = jax.numpy.broadcast_to(e[:, :1, None, :], (len(e), 1, *w.shape))
        return structured.LinearChainCRF(jax.numpy.concatenate([first, w + e[:, 1:, None]], 1))

    gradient = jax.jit(jax.value_and_grad(lambda e, w: law(e, w).log_partition().sum(), (0, 1)))
    best, marginals = jax.jit(lambda e, w: law(e, w).argmax()), jax.jit(lambda e, w: law(e, w).marginals())
    return {
        "log Z, gradient": lambda: (*(lambda v, g: (float(v), *g))(*gradient(e, w)),),
        "Viterbi": lambda: best(e, w),
        "marginals": lambda: marginals(e, w),
    }


def crfsuite(work: Job, *, passes: int = 20) -> dict[str, Callable[[], Any]]:
    """python-crfsuite: a pass of its L-BFGS over the same number of nodes, float64, with K features a node: their weights are its emissions.

    It does more (the features' gradients, the optimiser's steps), and its potentials are others: an order of magnitude, no like for like.
    One training, divided by its number of passes.
    """
    import pycrfsuite

    b, t, k = work.emissions.shape
    labels = np.random.default_rng(0).integers(0, k, (b, t))
    trainer = pycrfsuite.Trainer(verbose=False)
    for row, values in zip(labels, work.emissions, strict=True):
        items = [{f"f{i}": float(v) for i, v in enumerate(node)} for node in values]
        trainer.append(pycrfsuite.ItemSequence(items), [str(label) for label in row])
    file = tempfile.mkdtemp() + "/model"

    def trained() -> None:
        trainer.set_params({"max_iterations": passes, "epsilon": 0, "delta": 0, "feature.possible_transitions": True})
        trainer.train(file)

    return {"one pass of training": trained}


PEERS = {
    "pytorch-crf": ("torchcrf", pytorch_crf),
    "torch-struct": ("torch_struct", torch_struct),
    "SynJax": ("synjax", synjax),
    "python-crfsuite": ("pycrfsuite", crfsuite),
}


def check(name: str, found: tuple[Any, Any, Any], truth: tuple[float, np.ndarray, np.ndarray]) -> None:
    for what, x, y in zip(("log Z", "nodes", "pairs"), found, truth, strict=True):
        np.testing.assert_allclose(np.asarray(x), y, rtol=1e-3, atol=2e-3, err_msg=f"{name}: {what}")


def compare(t: int, k: int, b: int, repeats: int) -> None:
    work = job(t, k, b)
    print(f"T={t}, K={k}, B={b}")
    truth, mine = reference(work), lnz_jobs(work)
    table: dict[str, dict[str, Callable[[], Any]]] = {name: {f"lnz, {name}": call} for name, call in mine.items()}
    kernel = c_kernel(work)
    table["log Z, gradient"]["C kernel"] = kernel
    check("C kernel", kernel(), truth)
    value, gradient = mine["log Z, gradient"]()
    check("lnz", (value, *gradient), truth)
    for peer, (module, jobs) in PEERS.items():
        if importlib.util.find_spec(module) is None:
            print(f"  {peer} cannot be imported here, and is left out")
            continue
        if peer == "torch-struct" and b * t * k**2 > 5e6:
            print(f"  {peer} is left out at this size, where it takes minutes and gigabytes")
            continue
        for name, call in jobs(work).items():
            if name == "log Z, gradient":
                check(peer, call(), truth)
            begun = time.process_time()
            call()
            if time.process_time() - begun > 5:
                print(f"  {peer}, {name}: {1e3 * (time.process_time() - begun):.0f} ms (once)")
            else:
                table.setdefault(name, {})[f"{peer}, {name}"] = call
    for name, candidates in table.items():
        units = {"python-crfsuite, one pass of training": 20.0}
        measure(candidates, repeats=repeats, min_time=0.2, units=units, title=name)


def long_chain(recompute: bool) -> Callable[[], float]:
    import jax

    import lnz

    e = jax.numpy.asarray(np.random.default_rng(0).normal(size=(100_000, 50)).astype(np.float32))
    w, route = jax.numpy.zeros((50, 50), e.dtype), lnz.routes.ForwardBackward(recompute=recompute)
    log_z = lambda e, w: lnz.log_partition(lnz.LinearChain(e, w), route=route).value  # noqa: E731
    compiled = jax.jit(jax.value_and_grad(log_z, (0, 1))).lower(e, w).compile()
    return lambda: float(jax.block_until_ready(compiled(e, w))[0])


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", nargs="*", default=["100,20,32", "512,50,64", "40,100,32"])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--job", choices=["long", "recomputed"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        report_job(long_chain(options.job == "recomputed"))
        return
    if options.memory:
        for name in ("long", "recomputed"):
            print(f"T=100,000, K=50, B=1, log Z and gradient, {name}: peak", peak_memory(__file__, name))
        return
    for size in options.sizes:
        compare(*map(int, size.split(",")), options.repeats)


if __name__ == "__main__":
    main()
