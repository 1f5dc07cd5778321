"""What other libraries, and plain loops, do on the jobs lnz is timed on; `python peers.py` checks that it is right.

Each function sets one job up and returns a callable without arguments that does one unit of it: one update of an RBM,
one AIS run, one exact log Z. An RBM is p(v, h) ∝ exp(b·v + c·h + vᵀW h) with W of shape (visible, hidden), float32,
and every job starts from the same `Model`. Peers run through their public functions at their defaults; where what they
compute differs from the job as others do it, the docstring says so. Libraries are imported where they are used.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Update = Callable[[], Any]  # returns the weights (visible, hidden) after the update


class Model(NamedTuple):
    """An RBM's parameters."""

    weights: Array  # (visible, hidden)
    visible_bias: Array
    hidden_bias: Array


def random_model(visible: int, hidden: int, *, scale: float = 0.05, seed: int = 0) -> Model:
    rng = np.random.default_rng(seed)
    draw = lambda spread, *shape: (spread * rng.standard_normal(shape)).astype(np.float32)  # noqa: E731
    return Model(draw(scale, visible, hidden), draw(0.5, visible) - 1, draw(0.1, hidden))


def random_data(n: int, visible: int, *, seed: int = 1) -> Array:
    """Binary data with a mean of its own for each unit, 0.25 on average."""
    rng = np.random.default_rng(seed)
    return (rng.random((n, visible)) < rng.beta(0.5, 1.5, visible)).astype(np.float32)


# One update of the parameters, persistent chains; as many chains as data.


def rbms_pcd(model: Model, data: Array, *, sweeps: int = 10, learning_rate: float = 0.01) -> Update:
    """rbms: `fit_batch_pcd` and SGD, what its `train` does for an update.

    Left out: `train` also writes the learning rate to an HDF5 file at each update. Departs from the textbook, by
    default: gradients are centred, and then rescaled to norm 1. 24 matrix products: 21 for the chains, 1 for the
    positive phase (which also draws hidden states that are not used), 2 for the gradient.
    """
    import torch
    from rbms.training.pcd import fit_batch_pcd

    rbm = _rbms_model(model)
    rbm.init_grad()
    optimizer = torch.optim.SGD(rbm.parameters(), lr=learning_rate, maximize=True)
    batch = torch.tensor(data), torch.ones(len(data))
    chains = rbm.init_chains(len(data))

    @torch.no_grad()
    def update():
        nonlocal chains
        optimizer.zero_grad(set_to_none=False)
        chains, _ = fit_batch_pcd(batch, chains, rbm, gibbs_steps=sweeps, beta=1.0)
        optimizer.step()
        return rbm.weight_matrix

    return update


def ebmkit_pcd(model: Model, data: Array, *, sweeps: int = 10, learning_rate: float = 1e-3) -> Update:
    """ebmkit: `Trainer.fit` for one step, with `ContrastiveDivergence`, `GibbsSampler` and `ReplayBuffer`; Adam.

    Departs from persistent chains, by default: chains are drawn from the buffer **with replacement**, so that an update
    moves about 63 % of the stored chains, and each starts afresh from noise with probability 0.05. 24 products.
    """
    import ebm
    import torch

    energy = _ebmkit_model(model)
    noise = lambda shape: torch.bernoulli(torch.full(shape, 0.5))  # noqa: E731
    buffer = ebm.ReplayBuffer(len(data), (data.shape[1],), init_fn=noise)
    loss = ebm.ContrastiveDivergence(ebm.GibbsSampler(sweeps), buffer)
    trainer = ebm.Trainer(energy, loss, lr=learning_rate, device="cpu")
    batches = itertools.repeat(torch.tensor(data))

    def update():
        trainer.fit(batches, steps=1, verbose=False)
        return energy.W.detach().T

    return update


def sklearn_pcd1(model: Model, data: Array, *, learning_rate: float = 0.1) -> Update:
    """scikit-learn: `BernoulliRBM.partial_fit`, PCD-1.

    It works in **float64** whatever the data (`sklearn_fit` does not). The chains are its hidden states, so that 5
    products make an update. It is given a batch as large as its set of chains: any other has a biased gradient.
    """
    from sklearn.neural_network import BernoulliRBM

    rbm = BernoulliRBM(model.weights.shape[1], learning_rate=learning_rate, batch_size=len(data), random_state=0)
    rbm.partial_fit(data)  # makes the attributes, which can then be set
    rbm.components_[:] = model.weights.T
    rbm.intercept_hidden_[:], rbm.intercept_visible_[:] = model.hidden_bias, model.visible_bias

    def update():
        rbm.partial_fit(data)
        return rbm.components_.T

    return update


def sklearn_fit(model: Model, data: Array, *, updates: int = 20) -> Callable[[], Any]:
    """scikit-learn: `BernoulliRBM.fit` on one batch, `updates` epochs of one PCD-1 update, in **float32**.

    `fit` draws its own initial parameters, once a call; that is in the time (some 2 % at 20 updates).
    """
    from sklearn.neural_network import BernoulliRBM

    rbm = BernoulliRBM(model.weights.shape[1], batch_size=len(data), n_iter=updates, random_state=0)
    return lambda: rbm.fit(data)


# The limits: plain loops in torch and JAX, no library around them. Chains are kept as hidden states, whose means serve
# the gradient too: 2 products a sweep, 1 for the positive phase and 2 for the gradient, 23 in all with 10 sweeps.


def torch_pcd(model: Model, data: Array, *, sweeps: int = 10, learning_rate: float = 0.01) -> Update:
    """A tuned torch loop: in place, `uniform_` and a comparison for `bernoulli` (5 times as fast), no autograd; SGD."""
    import torch

    w, b, c = (torch.tensor(x) for x in model)
    v_data, n = torch.tensor(data), len(data)
    h = torch.bernoulli(torch.full((n, len(c)), 0.5))
    gradient = torch.empty_like(w)
    h_mean, h_data, h_bits, v, v_bits = (torch.empty(n, k) for k in (len(c), len(c), len(c), len(b), len(b)))

    @torch.no_grad()
    def update():
        for _ in range(sweeps):
            torch.addmm(b, h, w.T, out=v).sigmoid_()
            torch.lt(v_bits.uniform_(), v, out=v)
            torch.addmm(c, v, w, out=h_mean).sigmoid_()
            torch.lt(h_bits.uniform_(), h_mean, out=h)
        torch.addmm(c, v_data, w, out=h_data).sigmoid_()
        rate = learning_rate / n
        torch.mm(v_data.T, h_data, out=gradient).addmm_(v.T, h_mean, alpha=-1)
        w.add_(gradient, alpha=rate)
        b.add_(v_data.sum(0) - v.sum(0), alpha=rate)
        c.add_(h_data.sum(0) - h_mean.sum(0), alpha=rate)
        return w

    return update


def jax_pcd(model: Model, data: Array, *, sweeps: int = 10, learning_rate: float = 0.01) -> Update:
    """A jitted JAX scan with the stock `jax.random.bernoulli` (threefry); SGD."""
    import jax
    import jax.numpy as jnp

    v_data, n = jnp.asarray(data), len(data)

    @jax.jit
    def step(key, h, w, b, c):
        def sweep(carry, key):
            h, _, _ = carry
            key_v, key_h = jax.random.split(key)
            v = jax.random.bernoulli(key_v, jax.nn.sigmoid(h @ w.T + b)).astype(w.dtype)
            h_mean = jax.nn.sigmoid(v @ w + c)
            return (jax.random.bernoulli(key_h, h_mean).astype(w.dtype), v, h_mean), None

        key, *keys = jax.random.split(key, sweeps + 1)
        (h, v, h_mean), _ = jax.lax.scan(sweep, (h, v_data, h), jnp.stack(keys))
        h_data = jax.nn.sigmoid(v_data @ w + c)
        rate = learning_rate / n
        w = w + rate * (v_data.T @ h_data - v.T @ h_mean)
        return key, h, w, b + rate * (v_data - v).sum(0), c + rate * (h_data - h_mean).sum(0)

    state = (jax.random.key(0), jnp.zeros((n, model.weights.shape[1])), *(jnp.asarray(x) for x in model))

    def update():
        nonlocal state
        state = step(*state)
        return state[2]

    return update


def jax_products(model: Model, data: Array, *, sweeps: int = 10) -> Callable[[], Any]:
    """The products of `jax_pcd` alone, jitted: 2 * sweeps in a scan, 1 for the positive phase, 2 for the gradient.

    The weights have largest singular value 1, so that nothing overflows or becomes subnormal.
    """
    import jax
    import jax.numpy as jnp

    w = jnp.asarray(model.weights / np.linalg.norm(model.weights, 2))
    v_data = jnp.asarray(data)

    @jax.jit
    def products(w, h):
        def sweep(carry, _):
            _, h = carry
            v = h @ w.T
            return (v, v @ w), None

        (v, h), _ = jax.lax.scan(sweep, (v_data, h), None, length=sweeps)
        return v_data.T @ (v_data @ w), v.T @ h, h

    h = v_data @ w
    return lambda: products(w, h)


# Annealed importance sampling; the callable returns log Z in nats.


def rbms_ais(model: Model, *, chains: int = 100, temperatures: int = 200) -> Callable[[], float]:
    """rbms: `compute_partition_function_ais`, block Gibbs, a float without an error.

    Base: the visible biases alone. A temperature costs 5 products (3 to move, of which the last is not used, 2 for the
    free energies at the two temperatures) and two copies of the parameters. Counted: moves between neighbouring
    temperatures, so `temperatures` + 1 values of beta.
    """
    import torch
    from rbms.partition_function.ais import compute_partition_function_ais

    rbm = _rbms_model(model)
    return torch.no_grad()(lambda: compute_partition_function_ais(chains, temperatures + 1, rbm))


def ebmkit_ais(model: Model, *, chains: int = 100, temperatures: int = 200) -> Callable[[], float]:
    """ebmkit: `ais_log_z` from the same base, with `GibbsWithGradients`, its kernel for binary states.

    Not the same work: a move is a proposal to flip **one** unit of each chain, where the others renew all of them, so
    that log Z comes out far too low on a large model (ebmkit's own block `GibbsSampler` is refused here: it wants the
    RBM, not the energy between base and RBM). Compare times only with that in mind.
    """
    import ebm
    import torch

    energy = _ebmkit_model(model)
    base = torch.distributions.Independent(torch.distributions.Bernoulli(logits=energy.b.detach().clone()), 1)
    shape = (len(model.visible_bias),)
    kernel = ebm.GibbsWithGradients()
    run = lambda: ebm.ais_log_z(energy, shape, base=base, n_temps=temperatures, n_chains=chains, sampler=kernel)  # noqa: E731
    return lambda: run().log_z


# Exact log Z by the hidden layer, in nats.


def rbms_exact(model: Model) -> Callable[[], float]:
    """rbms: `compute_partition_function` over all states of the hidden layer, which the caller lists (in the time)."""
    import torch
    from rbms.partition_function.exact import compute_partition_function
    from rbms.utils import get_categorical_configurations

    rbm, hidden = _rbms_model(model), len(model.hidden_bias)
    return torch.no_grad()(lambda: compute_partition_function(rbm, get_categorical_configurations(2, hidden)))


def ebmkit_exact(model: Model) -> Callable[[], float]:
    """ebmkit: `RBM.log_z`, at most 20 units in the smaller layer."""
    energy = _ebmkit_model(model)
    return lambda: float(energy.log_z())


def numpy_exact(model: Model, *, block: int = 4096, dtype: type = np.float32) -> Callable[[], float]:
    """Plain NumPy in blocks of hidden states; in float64 the reference of the check."""
    w, b, c = (x.astype(dtype) for x in model)
    bits = np.arange(len(c))

    def log_z() -> float:
        total = -np.inf
        for start in range(0, 2 ** len(c), block):
            h = (np.arange(start, min(start + block, 2 ** len(c)))[:, None] >> bits & 1).astype(dtype)
            field = h @ w.T + b
            terms = np.maximum(field, 0) + np.log1p(np.exp(-np.abs(field)))
            total = np.logaddexp(total, np.logaddexp.reduce((h @ c + terms.sum(1)).astype(np.float64)))
        return float(total)

    return log_z


def _rbms_model(model: Model) -> Any:
    import torch
    from rbms.bernoulli_bernoulli.classes import BBRBM

    weights, visible, hidden = (torch.tensor(x) for x in model)
    return BBRBM(weight_matrix=weights, vbias=visible, hbias=hidden)


def _ebmkit_model(model: Model) -> Any:
    import ebm
    import torch

    energy = ebm.nets.RBM(*model.weights.shape)
    with torch.no_grad():
        energy.W.copy_(torch.tensor(model.weights.T))
        energy.b.copy_(torch.tensor(model.visible_bias))
        energy.c.copy_(torch.tensor(model.hidden_bias))
    return energy


def check() -> None:
    """Each job against exact sums on small models; raises AssertionError if one computes something else."""
    small, large = random_model(10, 6, scale=0.7), random_model(40, 9, scale=0.3)
    log_z = numpy_exact(large, dtype=np.float64)()
    everything = np.array(list(itertools.product((0, 1), repeat=10)), np.float64)
    log_p = everything @ small.visible_bias + np.logaddexp(0, everything @ small.weights + small.hidden_bias).sum(1)
    for job in (numpy_exact, rbms_exact, ebmkit_exact):
        np.testing.assert_allclose(job(large)(), log_z, atol=1e-4, err_msg=job.__name__)
        np.testing.assert_allclose(job(small)(), np.logaddexp.reduce(log_p), atol=1e-4, err_msg=job.__name__)
    for job in (rbms_ais, ebmkit_ais):
        value = job(small, chains=2000, temperatures=500)()
        np.testing.assert_allclose(value, numpy_exact(small)(), atol=0.05, err_msg=job.__name__)

    # The mean of many small steps is the exact gradient of the log-likelihood, so chains and phases are right. For
    # rbms the gradient is centred and only its direction is kept; Adam's steps keep the signs.
    data = random_data(500, 10)

    def phases(v, weights, centre=(0.0, 0.0)):
        h = 1 / (1 + np.exp(-(v @ small.weights + small.hidden_bias)))
        return (weights[:, None] * (v - centre[0])).T @ (h - centre[1])

    uniform, model_p = np.full(500, 1 / 500), np.exp(log_p - np.logaddexp.reduce(log_p))
    exact = phases(data, uniform) - phases(everything, model_p)
    centre = data.mean(0), (1 / (1 + np.exp(-(data @ small.weights + small.hidden_bias)))).mean(0)
    centred = phases(data, uniform, centre) - phases(everything, model_p, centre)
    for job in (rbms_pcd, ebmkit_pcd, sklearn_pcd1, torch_pcd, jax_pcd):
        update = job(small, data, learning_rate=2e-5)
        start = np.asarray(update()).copy()  # torch updates in place
        for _ in range(500):
            end = update()
        step = (np.asarray(end) - start) / (500 * 2e-5)
        if job is rbms_pcd:
            assert np.vdot(step, centred) / np.linalg.norm(step) / np.linalg.norm(centred) > 0.995, job.__name__
        elif job is ebmkit_pcd:
            assert np.all((step * exact > 0)[np.abs(exact) > 0.02]), job.__name__
        else:
            np.testing.assert_allclose(step, exact, atol=0.01, err_msg=job.__name__)
    print("Peers and plain loops agree with exact sums.")


if __name__ == "__main__":
    check()
