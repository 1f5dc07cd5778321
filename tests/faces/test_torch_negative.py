"""lnz.torch.PersistentChains: samples of the model in training, and an RBM as good as one by lnz.fit."""

import numpy as np
import optax
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

import lnz


class RBM(nn.Module):
    """The free energy of a machine of bits."""

    def __init__(self, visible=6, hidden=3):
        super().__init__()
        self.weights = nn.Parameter(0.1 * torch.randn(visible, hidden))
        self.visible = nn.Parameter(torch.zeros(visible))
        self.hidden = nn.Parameter(torch.zeros(hidden))

    def forward(self, v):
        return -v @ self.visible - nn.functional.softplus(v @ self.weights + self.hidden).sum(1)


def data():
    rng = np.random.default_rng(0)
    kinds = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0], [1, 0, 0, 0, 1, 1]])
    rows = kinds[rng.choice(3, 400, p=[0.5, 0.3, 0.2])]
    return np.abs(rows - (rng.random(rows.shape) < 0.05)).astype(np.float32)


def log_likelihood(energy):
    return float(lnz.log_likelihood(energy, data(), route=lnz.routes.Enumeration()).value)


def trained(negative, module, updates=250):
    torch.manual_seed(1)
    v = torch.tensor(data())
    optimizer = torch.optim.SGD(module.parameters(), 0.3)
    for _ in range(updates):
        optimizer.zero_grad()
        loss = module(v[torch.randint(len(v), (100,))]).mean() - module(negative.step()).mean()
        loss.backward()
        optimizer.step()
    return module


@pytest.mark.parametrize("in_jax", [False, True])
def test_a_machine_trained_in_pytorch_is_as_good_as_one_by_fit(in_jax, key):
    torch.manual_seed(0)
    module = RBM()

    def energy():
        return lnz.RBM.from_parameters(*(p.numpy(force=True) for p in (module.weights, module.visible, module.hidden)))

    space = None if in_jax else lnz.Binary(6)
    negative = lnz.torch.PersistentChains(energy if in_jax else module, space, chains=100, sweeps=2)
    before, start = log_likelihood(lnz.torch.as_energy(module, lnz.Binary(6))), energy()
    found = log_likelihood(lnz.torch.as_energy(trained(negative, module), lnz.Binary(6)))
    phase = lnz.learning.PersistentChains(sweeps=2, chains=100)
    fitted = lnz.fit(start, data(), optimizer=optax.sgd(0.3), negative_phase=phase, batch_size=100, epochs=62, key=key)
    by_fit = log_likelihood(fitted.energy)
    assert found > before + 0.8
    assert found == pytest.approx(by_fit, abs=0.15)


def test_states_are_kept_and_have_the_models_distribution():
    torch.manual_seed(0)
    module = RBM(3, 2)
    with torch.no_grad():
        module.visible.copy_(torch.tensor([1.0, -1.0, 0.5]))
        module.weights.mul_(10)
    negative = lnz.torch.PersistentChains(module, lnz.Binary(3), chains=4000, sweeps=30)
    kept = negative.states.clone()
    states = negative.step()
    assert states.shape == (4000, 3)
    assert states.dtype == torch.float32
    assert torch.equal(states, negative.states)
    assert not torch.equal(states, kept)
    assert not states.requires_grad
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    p = torch.softmax(-module(every).detach(), 0)
    numbers = (states @ torch.tensor([4.0, 2.0, 1.0])).long()
    expected = 4000 * p
    chi2 = float(((torch.bincount(numbers, minlength=8) - expected) ** 2 / expected).sum())
    assert chi2 < 7 + 6 * np.sqrt(14)
    # The present parameters count, not those at construction.
    with torch.no_grad():
        module.visible.copy_(torch.tensor([-30.0, 30.0, -30.0]))
    assert torch.equal(negative.step().mean(0), torch.tensor([0.0, 1.0, 0.0]))


def test_what_is_drawn_follows_pytorchs_seed():
    module = RBM()

    def drawn():
        torch.manual_seed(7)
        negative = lnz.torch.PersistentChains(module, lnz.Binary(6), chains=5)
        return torch.stack([negative.step(), negative.step()])

    assert torch.equal(drawn(), drawn())


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"a module needs its space"):
        lnz.torch.PersistentChains(RBM())
    with pytest.raises(ValueError, match="does not support"):
        lnz.torch.PersistentChains(RBM(), lnz.Binary(6), kernel=lnz.kernels.Langevin())
