"""Chains for ArviZ, and graphs of pgmpy learned from data frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz

ISING = lnz.Ising.lattice((3, 3), 0.3, 0.1, periodic=False)


def test_chains_for_arviz():
    pytest.importorskip("arviz")
    states, draws = ISING.space.uniform(jax.random.key(0), 4), []
    for i in range(200):
        states = lnz.kernels.run_chains(ISING, lnz.kernels.Gibbs(), states, jax.random.key(i), 5)
        draws.append(states)
    draws = jnp.stack(draws, axis=1)
    energies = jax.vmap(jax.vmap(ISING))(draws)
    found = lnz.interop.chains_to_arviz({"spin": draws}, energies=energies, attributes={"log_z": 7.5})
    np.testing.assert_array_equal(found.posterior["spin"], draws)
    np.testing.assert_array_equal(found.sample_stats["lp"], -energies)
    assert found.attrs["log_z"] == 7.5
    assert lnz.interop.chains_to_arviz(draws).posterior["x"].shape == (4, 200, 3, 3)
    with pytest.raises(ValueError, match="the same numbers of chains and draws along its first two axes"):
        lnz.interop.chains_to_arviz(draws, energies=energies[:, 1:])


def test_a_network_of_pgmpy_is_learned_from_a_data_frame():
    pytest.importorskip("sklearn")
    pandas, models = pytest.importorskip("pandas"), pytest.importorskip("pgmpy.models")
    rng = np.random.default_rng(0)
    rain = rng.random(500) < 0.3
    wet = np.where(rng.random(500) < 0.9, rain, ~rain)
    frame = pandas.DataFrame(
        {"rain": np.where(rain, "yes", "no"), "wet": np.where(wet, "wet", "dry"), "day": rng.integers(0, 3, 500)}
    )
    made = getattr(models, "DiscreteMarkovNetwork", None) or models.MarkovNetwork
    network = made([("rain", "wet"), ("wet", "day"), ("day", "rain")])
    fitted = lnz.sklearn.MarkovNetwork(list(network.edges())).fit(frame)
    learned = fitted.to_pgmpy()
    assert learned.check_model()
    assert {frozenset(edge) for edge in learned.edges()} == {frozenset(edge) for edge in network.edges()}
    back = lnz.interop.from_pgmpy(learned)
    assert back.variables == ["rain", "wet", "day"]
    assert back.states == [["no", "yes"], ["dry", "wet"], [0, 1, 2]]
    log_z = float(lnz.log_partition(back.graph).value)
    assert log_z == pytest.approx(np.log(learned.get_partition_function()), abs=1e-4)
    assert log_z == pytest.approx(float(fitted.log_z_), abs=1e-4)
    codes = np.array([[back.states[i].index(value) for i, value in enumerate(row)] for row in frame.to_numpy()])
    score = float(np.mean([-float(back.graph(jnp.asarray(row))) for row in codes[:50]])) - log_z
    assert score == pytest.approx(fitted.score(frame[:50]), abs=1e-4)
