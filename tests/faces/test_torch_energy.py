"""lnz.torch.as_energy against sums over all states, closed forms and quadrature, with PyTorch's own gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

import lnz


class Ising(nn.Module):
    def __init__(self, n=6):
        super().__init__()
        self.coupling = nn.Parameter(0.4 * torch.randn(n, n))
        self.field = nn.Parameter(0.5 * torch.randn(n))

    def forward(self, s):
        return -((s @ self.coupling.to(s.dtype)) * s).sum(1) - s @ self.field.to(s.dtype)


class Potts(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        assert x.dtype == torch.int64
        return self.table[x[:, :-1], x[:, 1:]].sum(1)


class Normal(nn.Module):
    def __init__(self):
        super().__init__()
        self.precision = nn.Parameter(torch.tensor([[2.0, 0.5, 0.1], [0.5, 1.0, 0.0], [0.1, 0.0, 0.5]]))
        self.register_buffer("mean", torch.tensor([0.5, -1.0, 0.2]))

    def forward(self, x):
        apart = x - self.mean
        return 0.5 * ((apart @ self.precision) * apart).sum(1)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return 2 * self.inner(x).squeeze(-1) + 0.5 * (x**2).sum(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(4)


def tensor(states):
    x = torch.tensor(np.asarray(states))
    return x.float() if x.is_floating_point() else x.long()


def failed(report):
    return [check.name for check in report.checks if check.status == "failed"]


def exact(module, space):
    """log Z and its gradient by PyTorch, over all states."""
    x = tensor(space.decode(jnp.arange(space.count)))
    log_z = torch.logsumexp(-module(x), 0)
    names, parameters = zip(*module.named_parameters(), strict=True)
    return float(log_z.detach()), dict(zip(names, torch.autograd.grad(log_z, parameters), strict=True))


@pytest.mark.parametrize(("kind", "space"), [(Ising, lnz.Spin(6)), (Potts, lnz.Categorical(5, 3))])
def test_log_z_its_gradient_and_likelihoods_of_discrete_states(kind, space):
    module = kind()
    energy = lnz.torch.as_energy(module, space)
    log_z, gradient = exact(module, space)
    assert float(lnz.log_partition(energy).value) == pytest.approx(log_z, abs=1e-5)
    found = jax.grad(lambda e: lnz.log_partition(e).value)(energy).parameters
    for name, expected in gradient.items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5)
    data = space.uniform(jax.random.key(0), 20)
    expected = -module(tensor(data)).detach().mean() - log_z
    assert float(lnz.log_likelihood(energy, data).value) == pytest.approx(float(expected), abs=1e-5)
    kind = kind.__name__
    assert repr(energy).startswith(f"ModuleEnergy({kind}, {space!r}, ")
    assert "by batched calls of PyTorch on the host" in repr(energy)


@pytest.mark.parametrize("route", [lnz.routes.AnnealedImportanceSampling, lnz.routes.SequentialMonteCarlo])
def test_stochastic_routes_on_discrete_states(route, key):
    module = Ising()
    options = {"temperatures": 50} if route is lnz.routes.AnnealedImportanceSampling else {}
    found = lnz.log_partition(lnz.torch.as_energy(module, lnz.Spin(6)), route=route(**options), key=key)
    assert float(found.lower) <= exact(module, lnz.Spin(6))[0] <= float(found.upper)
    assert float(found.upper - found.lower) < 2


def test_bounds_of_discrete_states():
    module = Ising()
    bounds = lnz.log_partition_bounds(lnz.torch.as_energy(module, lnz.Spin(6)))
    assert float(bounds.lower) - 1e-4 <= exact(module, lnz.Spin(6))[0] <= float(bounds.upper) + 1e-4


def test_a_normal_density(key):
    module = Normal()
    energy = lnz.torch.as_energy(module, lnz.Real(3))
    truth = 1.5 * np.log(2 * np.pi) - 0.5 * float(torch.logdet(module.precision).detach())
    route = lnz.routes.AnnealedImportanceSampling(temperatures=50)
    found = lnz.log_partition(energy, route=route, key=key)
    assert float(found.lower) <= truth <= float(found.upper)
    assert float(found.value) == pytest.approx(truth, abs=0.2)


def test_a_network_in_two_dimensions_against_a_grid():
    module = Network().double()
    energy = lnz.torch.as_energy(module, lnz.Real(2))
    line = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    truth = torch.logsumexp(-module(grid), 0) + 2 * torch.log(line[1] - line[0])
    found = lnz.log_partition(energy)
    assert float(found.value) == pytest.approx(float(truth.detach()), abs=1e-5)


def test_the_audit_finds_nothing_wrong_and_sees_a_wrong_gradient(key):
    assert failed(lnz.audit(lnz.torch.as_energy(Ising(4), lnz.Spin(4)), key=key)) == []

    class Wrong(Ising):
        def forward(self, s):
            return super().forward(s) - self.field.detach().to(s.dtype).sum() ** 2

    report = lnz.audit(lnz.torch.as_energy(Wrong(4), lnz.Spin(4)), key=key)
    assert "gradient against difference" in failed(report)


def test_derivatives_in_states_and_parameters_under_vmap():
    module = Network().double()
    energy = lnz.torch.as_energy(module, lnz.Real(2))
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    flat = module(x.reshape(-1, 2))
    expected = torch.autograd.grad(flat.sum(), [x, *module.parameters()])
    points = jnp.asarray(x.detach().numpy())
    over = jax.vmap(jax.vmap(lambda e, v: e(v), (None, 0)), (None, 0))
    np.testing.assert_allclose(over(energy, points), flat.detach().reshape(4, 3), atol=1e-12)
    np.testing.assert_allclose(jax.grad(lambda v: over(energy, v).sum())(points), expected[0], atol=1e-12)
    found = jax.jit(jax.grad(lambda e: over(e, points).sum()))(energy).parameters
    for (name, _), wanted in zip(module.named_parameters(), expected[1:], strict=True):
        np.testing.assert_allclose(found[name], wanted, atol=1e-12)
    # Parameters that differ within a batch.
    scales = jnp.asarray([1.0, 2.0, 0.5])
    several = jax.vmap(lambda s: jax.tree.map(lambda p: p * s, energy))(scales)
    rows = jax.vmap(lambda e, v: e(v))(several, points[0])
    for i, scale in enumerate(scales):
        scaled = jax.tree.map(lambda p, scale=scale: p * scale, energy)
        assert float(rows[i]) == pytest.approx(float(scaled(points[0, i])), abs=1e-12)
    # Second derivatives in forward mode.
    v = points[0, 0]
    slope, bend = jax.jvp(jax.grad(energy), (v,), (jnp.asarray([1.0, -2.0]),))
    hessian = torch.autograd.functional.hessian(lambda y: module(y[None])[0], x[0, 0].detach())
    np.testing.assert_allclose(bend, hessian @ torch.tensor([1.0, -2.0], dtype=torch.float64), atol=1e-10)
    np.testing.assert_allclose(slope, expected[0][0, 0], atol=1e-12)
    with pytest.raises(NotImplementedError):
        jax.grad(lambda y: jnp.sum(jax.grad(energy)(y)))(v)


def test_a_module_whose_gradients_cannot_be_computed_together():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.7))

        def forward(self, s):
            total = torch.zeros_like(s[:, 0])
            for t in range(s.shape[1]):
                if float(self.scale.detach()) > 0:  # depends on numbers
                    total = total - self.scale * s[:, t] * s[:, (t + 1) % 4] * (t + 1)
            return total

    module = Recurrent()
    energy = lnz.torch.as_energy(module, lnz.Spin(4))
    log_z, gradient = exact(module, lnz.Spin(4))
    assert float(lnz.log_partition(energy).value) == pytest.approx(log_z, abs=1e-5)
    found = jax.grad(lambda e: lnz.log_partition(e).value)(energy).parameters["scale"]
    assert float(found) == pytest.approx(float(gradient["scale"]), abs=1e-5)


def test_later_changes_of_the_module_have_no_effect():
    module = Ising()
    energy = lnz.torch.as_energy(module, lnz.Spin(6))
    before = float(lnz.log_partition(energy).value)
    with torch.no_grad():
        module.field.add_(1)
    assert float(lnz.log_partition(energy).value) == before
    assert module.field.requires_grad


def returns(f):
    module = Ising()
    module.forward = f
    return module


class Mixed(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, x):
        return self.parts(x).sum(1)


REFUSED = {
    "last axis": (
        lambda s: s.sum(1, keepdim=True),
        r"gives shape \(3, 1\) for 3 states\. Return it without its last axis",
    ),
    "scalar": (lambda s: s.sum(), r"gives shape \(\) for 3 states\. Sum over the entries of a state alone"),
    "entries": (lambda s: s, r"gives shape \(3, 6\) for 3 states\. Sum over all axes but the first"),
    "integers": (lambda s: s.sum(1).long(), "must return one float per state"),
    "no tensor": (lambda s: [s], "must return one float per state, .* returns list"),
    "noise": (lambda s: torch.rand(len(s)), "different energies for the same states"),
    "batch": (lambda s: s.sum(1) - s.mean(), "another energy when it is alone in its batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_modules_that_give_no_energies_are_refused(name):
    f, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as found:
        lnz.torch.as_energy(returns(f), lnz.Spin(6))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("part", [nn.BatchNorm1d(6), nn.Dropout(0.5)])
def test_training_mode_is_refused(part):
    module = Mixed(nn.Linear(6, 6), part)
    with pytest.raises(ValueError, match=r"parts\.1 is \w+ in training mode, .* Call module\.eval\(\) first"):
        lnz.torch.as_energy(module, lnz.Spin(6))
    energy = lnz.torch.as_energy(module.eval(), lnz.Spin(6))
    assert float(lnz.log_partition(energy).value) == pytest.approx(exact(module, lnz.Spin(6))[0], abs=1e-5)


@pytest.mark.wrong_types
def test_what_is_no_module_or_no_space_of_arrays_is_refused():
    with pytest.raises(TypeError, match=r"needs a torch\.nn\.Module, but got function"):
        lnz.torch.as_energy(lambda x: x.sum(1), lnz.Spin(6))
    with pytest.raises(TypeError, match="needs a space of arrays"):
        lnz.torch.as_energy(Ising(), lnz.Product(lnz.Spin(6), lnz.Real(2)))


def test_with_jax_as_it_is_by_default(single_precision):
    printed = single_precision("""
import jax, lnz, torch
torch.manual_seed(0)
class Ising(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.field = torch.nn.Parameter(torch.randn(4))
    def forward(self, s):
        return -s @ self.field - 0.3 * (s[:, 1:] * s[:, :-1]).sum(1)
module = Ising()
energy = lnz.torch.as_energy(module, lnz.Spin(4))
states = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)
log_z = torch.logsumexp(-module(states), 0)
print(abs(float(lnz.log_partition(energy).value) - log_z.item()) < 1e-5)
print(sum(check.status == "failed" for check in lnz.audit(energy, key=jax.random.key(0)).checks))
""")
    assert printed.split() == ["True", "0"]


def test_an_energy_trained_by_torchebm(key):
    """Log Z with an interval for an energy that was trained elsewhere."""
    torchebm = pytest.importorskip("torchebm")
    from torchebm.losses import ContrastiveDivergence
    from torchebm.samplers import LangevinDynamics

    class Model(torchebm.core.BaseModel):
        def __init__(self):
            super().__init__()
            self.network = Network()

        def forward(self, x):
            return self.network(x)

    model = Model()
    sampler = LangevinDynamics(model=model, step_size=0.05)
    loss = ContrastiveDivergence(model=model, sampler=sampler, k_steps=5)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    data = torch.cat([torch.randn(100, 2) * 0.4 + 1, torch.randn(100, 2) * 0.4 - 1])
    for _ in range(30):
        optimizer.zero_grad()
        loss(data)[0].backward()
        optimizer.step()
    energy = lnz.torch.as_energy(model, lnz.Real(2))
    line = torch.linspace(-12, 12, 801)
    with torch.no_grad():
        truth = torch.logsumexp(-model(torch.cartesian_prod(line, line)).double(), 0) + 2 * torch.log(line[1] - line[0])
    found = lnz.log_partition(energy, route=lnz.routes.AnnealedImportanceSampling(temperatures=100), key=key)
    assert float(found.lower) <= float(truth) <= float(found.upper)
    assert float(lnz.log_partition(energy).value) == pytest.approx(float(truth), abs=1e-3)
