"""The monitor of a training run: reports of figures, and alarms with remedies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from lnz._core.capabilities import complete, data_energy_of, free_energy_of, observed_space, visible_part
from lnz._core.convergence import autocorrelation_time, r_hat, r_hat_threshold
from lnz._core.energy import Energy
from lnz._core.printing import html_table
from lnz._core.random import fast_key, folded
from lnz._core.spaces import Binary, Categorical, Product, Space, Spin, State
from lnz._models.layers import BilinearLayers
from lnz.learning._gradients import cast
from lnz.learning._loop import measure_key
from lnz.learning._negative.negative_phase import NegativePhase, between
from lnz.learning._trainer import Trainer, TrainState
from lnz.routes._annealing.ais import AnnealedImportanceSampling

WATCHED = ("unmet", "acceptance", "energy_gap")  # figures of updates whose means are in a report
_SNAPSHOTS = 8  # at equal distances between two reports
_CHAINS = 128  # largest number of chains in a snapshot
_REJECTED = 0.05  # an acceptance below it: nearly every move is rejected
_FAR = 10  # times √n nats between data and chains: n independent entries, or a log-concave density, spread by at most about √n
_SLOW = 50  # updates that a chain needs to mix once; above, half a nat of lag is too much
_ROWS = 256  # rows of the data that a report uses
_FIXED = 0.05  # seconds of a report that do not depend on the model
# Seconds of a state's move per parameter (two operations), entry and transcendental function; fixed seconds per update.
_PER_WEIGHT, _PER_BIT, _PER_EXP, _PER_UPDATE = 2e-11, 4e-9, 1e-9, 5e-5


@dataclasses.dataclass(frozen=True)
class Alarm:
    """A problem of the chains or the model: the update (`step`), the alarm's `name`, the evidence (`seen`), and the `remedy`."""

    step: int
    name: str
    seen: str
    remedy: str

    def __str__(self) -> str:
        return f"update {self.step:,}: {self.seen}. {self.remedy}"

    def _repr_html_(self) -> str:
        return html_table(f"alarm {self.name}", {"update": f"{self.step:,}", "seen": self.seen, "remedy": self.remedy})


class Seen(dict[str, Any]):
    """Figures by name, NaN for missing ones, which never set off an alarm."""

    def __missing__(self, name: str) -> float:
        return math.nan


@dataclasses.dataclass(frozen=True)
class AlarmKind:
    """A kind of alarm: its name, the condition on the figures, the message (a format string over the figures), and the remedy."""

    name: str
    when: Callable[[Seen], bool]
    message: str
    remedy: str


def _lags(seen: Seen) -> bool:
    return seen["lag"] > 1 or (seen["lag"] > 0.5 and seen["tau"] > _SLOW)


# The figures are those of a report (see `Monitor`), with `_error` appended to their names for the standard errors of three of them.
ALARMS = (
    AlarmKind(
        "runaway",
        lambda seen: seen["gap"] > _FAR * seen["spread"],
        "the energy runs away: the states of {phase} lie {gap:,.3g} nats above the data, while states of a distribution over {entries:,} entries "
        "differ by about {spread:,.2g}",
        "Go back to an earlier model; lower the learning rate or the step size, use adjusted moves (Langevin instead of UnadjustedLangevin), or "
        "Regularisers(energy_penalty=0.1)",
    ),
    AlarmKind(
        "lag",
        _lags,
        "the chains mix more slowly than the parameters move: they need about {tau:,.0f} updates to mix once, in which the model moves by "
        "{lag:.1f} nats",
        "Lower the learning rate or raise sweeps, or use TemperedChains or JarzynskiWalkers",
    ),
    AlarmKind(
        "r_hat",
        lambda seen: seen["r_hat"] > seen["r_hat_threshold"] and not _lags(seen),
        "the chains disagree: R̂ of their energy is {r_hat:.2f}, and they need about {tau:,.0f} updates to mix once",
        "Raise sweeps, or use TemperedChains",
    ),
    AlarmKind(
        "unseen",
        lambda seen: seen["unseen"] - 3 * seen["unseen_error"] > 0.05,
        "about {unseen:.0%} of the model's probability mass lies farther from the data than the states of {phase}: its gradient hardly removes that "
        "mass",
        "Use chains that do not start at the data, such as TemperedChains or PersistentChains, or more sweeps",
    ),
    AlarmKind(
        "deeper",
        lambda seen: seen["effective"] > 10 and seen["deeper"] > max(1.0, 4 * seen["energy_error"]),
        "the mean energy of freshly annealed chains is {deeper:.1f} nats lower than that of the states of {phase}",
        "Raise sweeps, lower the learning rate, or use TemperedChains",
    ),
    AlarmKind(
        "likelihood",
        lambda seen: seen["best"] - seen["log_likelihood"] > 0.1 + 4 * seen["log_z_error"],
        "the log-likelihood of the training data has fallen to about {log_likelihood:.2f} nats per example, from {best:.2f}",
        "Go back to the best model; lower the learning rate or raise sweeps",
    ),
    AlarmKind(
        "unmet",
        lambda seen: seen["unmet"] > 0,
        "{unmet:.2%} of the pairs of coupled chains were stopped before they met: the gradient is biased",
        "Raise max_moves, lower the learning rate, or use TemperedChains",
    ),
    AlarmKind(
        "refused",
        lambda seen: seen["acceptance"] < _REJECTED,
        "only {acceptance:.2%} of the chains' moves are accepted: the chains are stuck, so updates raise the energy at their current states and "
        "lower it elsewhere",
        "Go back to an earlier model, and use a smaller step size or a lower learning rate",
    ),
    AlarmKind(
        "dead",
        lambda seen: seen["dead"] > 0.1,
        "{dead:.0%} of the hidden units have the same value for every example",
        "Lower the learning rate or the weight decay, or use fewer hidden units",
    ),
)


def alarms(step: int, figures: dict[str, Any]) -> list[Alarm]:
    """All alarms that these figures set off after this update."""
    seen = Seen(figures)
    seen["deeper"] = seen["energy_chains"] - seen["energy_fresh"]
    return [Alarm(step, kind.name, kind.message.format_map(seen), kind.remedy) for kind in ALARMS if kind.when(seen)]


@dataclasses.dataclass(frozen=True)
class MonitorReport:
    """A report on a run: the update, the figures by name (see `Monitor`), and the alarms that went off."""

    step: int
    figures: dict[str, float]
    alarms: tuple[Alarm, ...] = ()


@dataclasses.dataclass(frozen=True)
class Monitor:
    """A monitor of `fit`, which uses about `share` of the time and never changes the result.

    For every report, fresh chains are annealed from the energy's base to the model, by AIS. They are independent of the data and of the chains
    of the negative phase, and therefore detect what those miss. Between reports, snapshots of persistent chains show how fast they mix. The
    figures of a report:

    - `log_z`, by AIS, with `effective`, the effective number of its chains; `log_likelihood`, -E_data[F] - log Ẑ of the training data;
    - `energy_data`, `energy_chains`, `energy_fresh`: mean F of the data, of the negative phase's states, of the fresh chains;
    - `unseen` (discrete states): the excess of the fresh chains' mass over that of the phase's states beyond some distance from the nearest
      example, at the distance where it is largest (a one-sided Kolmogorov-Smirnov distance): the blind spot of CD (T11);
    - `r_hat` of the chains' energy, and `tau`, the autocorrelation time of their states in updates;
    - `lag`, the nats by which the log-probabilities of the chains' states change while they mix once: the standard deviation of
      F_θ(t) - F_θ(t-τ) over the chains. It is step size × |∇| × τ (T12), in units that do not depend on the model; above 1 the chains
      represent a past model;
    - `unmet`, for coupled chains that can be cut: the share of pairs that had not met, in all updates since the last report;
    - `acceptance`, for kernels that accept or reject: its mean over all updates since the last report;
    - `energy_gap`, mean F of the data less that of the chains, over all updates since the last report. The energies of states of a
      distribution over n entries differ by about √n nats. Where the chains lie ten times as far above the data, the energy runs away, and an
      alarm goes off at the next snapshot, in a report without other figures;
    - `dead`, the share of hidden units that are the same for every example.

    Reports come at fixed updates, which depend only on a prediction of the cost of reports and updates, so that repetitions of a run have the
    same reports. After a resumption, the first report lacks the figures that need a complete series of snapshots.

    Attributes:
        share: the share of the run's time for reports, in (0, 0.5].
        chains: number of annealed chains.
        temperatures: number of annealing temperatures.

    Example:
        >>> import jax, lnz
        >>> data = lnz.Binary(6).uniform(jax.random.key(0), 200)
        >>> rbm = lnz.RBM(visible=6, hidden=3, key=jax.random.key(1))
        >>> fitted = lnz.fit(rbm, data, epochs=2000, key=jax.random.key(2), monitor=lnz.learning.Monitor(share=0.3))
        >>> [alarm.name for report in fitted.reports for alarm in report.alarms]
        []
    """

    share: float = 0.05
    chains: int = 128
    temperatures: int = 50

    def __post_init__(self) -> None:
        between("share", self.share, 0, 0.5)
        if self.chains < 8:
            raise ValueError(f"a monitor needs at least 8 chains, but got {self.chains}")

    def every(self, energy: Energy, phase: NegativePhase | None, batch: int) -> int:
        """The updates between two reports, a multiple of 8, so that their predicted time is the given share."""
        move = _move_seconds(energy)
        moves = 0 if phase is None else phase.moves(energy, batch)
        update = _PER_UPDATE + move * (2 * batch + moves)
        report = _FIXED + move * (2.5 * self.chains * self.temperatures + moves)
        return _SNAPSHOTS * math.ceil(report / update / self.share / _SNAPSHOTS)


def _move_seconds(energy: Energy) -> float:
    """The predicted seconds of a move of one state: of a Gibbs sweep by the parameters, of a gradient by its compiled operations, since a
    convolution uses every weight many times."""
    bits = sum(math.prod(struct.shape) for struct in jax.tree.leaves(observed_space(energy).struct))
    if observed_space(energy).discrete:
        weights = sum(leaf.size for leaf in jax.tree.leaves(energy) if eqx.is_inexact_array(leaf))
        return _PER_WEIGHT * weights + _PER_BIT * bits
    arrays, rest = eqx.partition(energy, eqx.is_array)
    gradient = jax.jit(lambda arrays, v: jax.value_and_grad(free_energy_of(eqx.combine(arrays, rest)))(v))
    counted: Any = gradient.lower(arrays, observed_space(energy).struct).cost_analysis() or {}
    return 0.5 * _PER_WEIGHT * counted.get("flops", 0) + _PER_EXP * counted.get("transcendentals", 0) + _PER_BIT * bits


class Watch:
    """The state of a monitor on one run: the updates at which it needs the training state, snapshots, and sums of figures."""

    def __init__(self, monitor: Monitor, trainer: Trainer, energy: Energy, data: State, batch: int, step: int):
        self.monitor, self.trainer = monitor, trainer
        self.every = monitor.every(energy, trainer.negative_phase, batch)
        self.gap = self.every // _SNAPSHOTS
        n = jax.tree.leaves(data)[0].shape[0]
        self.batch = jax.tree.map(lambda leaf: leaf[: min(batch, n)], data)
        rows = np.linspace(0, n - 1, min(n, _ROWS)).astype(np.int64)
        self.rows = jax.tree.map(lambda leaf: leaf[rows], data)
        self.annealing = AnnealedImportanceSampling(temperatures=monitor.temperatures, chains=monitor.chains)
        self.fresh = self.annealing.unsupported_reason(energy) is None
        self.snapshots: list[tuple[int, Any]] = []
        self.models: dict[int, Energy] = {step: energy}
        self.best, self.active = -math.inf, set[str]()
        self.sums: dict[str, float] = {}
        self.entries = sum(math.prod(struct.shape) for struct in jax.tree.leaves(observed_space(energy).struct))
        self.since, self.gap_before = step, 0.0  # the last snapshot at equal distances, and the sum of gaps there

    def next_stop(self, step: int) -> int:
        """The next update after this one for which `see` needs the state."""
        end = (step // self.every + 1) * self.every
        return min(stop for stop in self._stops(end) if stop > step)

    def _stops(self, end: int) -> list[int]:
        """The updates of snapshots: at equal distances up to a report, and closer ones just before it."""
        fine = {end - 2**k for k in range(20) if 2**k < self.gap}
        return sorted({end - self.gap * k for k in range(_SNAPSHOTS)} | fine)

    def note(self, sums: dict[str, float]) -> None:
        """Add the sums of figures over the updates since the last call."""
        self.sums = {name: self.sums.get(name, 0.0) + total for name, total in sums.items()}

    def see(self, state: TrainState, step: int) -> MonitorReport | None:
        """Take a snapshot after this update if one is due, and report if a report is due or a new alarm goes off."""
        end = -(-step // self.every) * self.every
        if step not in self._stops(end):
            return None
        phase = self.trainer.negative_phase
        chains = None if phase is None else phase.positions(state.energy, state.negative)
        if chains is not None:
            kept = jax.tree.map(lambda leaf: np.asarray(leaf[:_CHAINS]), chains)
            self.snapshots.append((step, kept))
        if step in (end - self.gap, end - 1):
            self.models[step] = state.energy
        gap = self._gap(step) if (end - step) % self.gap == 0 else {}
        if step != end:
            found = tuple(alarm for alarm in self._judged(step, gap) if alarm.name not in self.active)
            self.active |= {alarm.name for alarm in found}
            return MonitorReport(step, {}, found) if found else None
        report = self._report(state, step, gap)
        self.models, self.snapshots = {step: state.energy}, []
        return report

    def _gap(self, step: int) -> dict[str, float]:
        """The figures of the alarm *runaway* over all updates since the last snapshot at equal distances."""
        total = self.sums.get("energy_gap", 0.0)
        gap = (self.gap_before - total) / max(step - self.since, 1)
        self.since, self.gap_before = step, total
        return {"gap": gap, "spread": math.sqrt(self.entries)}

    def _judged(self, step: int, figures: dict[str, float]) -> list[Alarm]:
        """The alarms that these figures set off."""
        names = {"phase": type(self.trainer.negative_phase).__name__, "entries": self.entries, "best": self.best}
        return alarms(step, {**figures, **names})

    def _report(self, state: TrainState, step: int, gap: dict[str, float]) -> MonitorReport:
        figures, errors = self._measured(state, step)
        mixing, threshold = self._mixing(state.energy, step)
        figures |= mixing
        figures |= {name: total / self.every for name, total in self.sums.items()}
        self.sums, self.gap_before = {}, 0.0
        uncertain = {f"{name}_error": error for name, error in errors.items()}
        found = self._judged(step, {**figures, **uncertain, **gap, "r_hat_threshold": threshold})
        likelihood = figures.get("log_likelihood", -math.inf)
        if math.isfinite(likelihood) and errors["log_z"] < 0.5:
            self.best = max(self.best, likelihood)
        fired = tuple(alarm for alarm in found if alarm.name not in self.active)
        self.active = {alarm.name for alarm in found}
        return MonitorReport(step, figures, fired)

    def _measured(self, state: TrainState, step: int) -> tuple[dict[str, float], dict[str, float]]:
        """Figures of the data, the phase's states and the fresh chains, and the errors of two of them."""
        energy = state.energy
        key = folded(measure_key(state.key, step), 1)
        phase = self.trainer.negative_phase if self.trainer.draws else None
        annealing = self.annealing if self.fresh else None
        data_energy, drawn, fresh, activity = _probe(phase, annealing, state, self.rows, self.batch, key)
        figures, errors = {"energy_data": float(data_energy)}, {"log_z": math.inf, "unseen": math.inf}
        if activity is not None:
            low, high = (np.asarray(a) for a in activity)
            figures["dead"] = float(((high < 0.01) | (low > 0.99)).mean())
        if drawn is not None:
            _, share, free = drawn
            figures["energy_chains"] = float(np.sum(np.asarray(share) * np.asarray(free)))
        if fresh is None:
            return figures, errors
        log_weights, fresh_states, fresh_free = fresh
        log_weights = np.asarray(log_weights, np.float64)
        top = log_weights.max() if np.isfinite(log_weights.max()) else 0.0
        with np.errstate(all="ignore"):  # no chain, or an infinite one, has weight: w is NaN
            w = np.exp(log_weights - top)
            log_z = float(top + np.log(w.mean()))
            w = w / w.sum()
        effective = 1 / float((w**2).sum())
        errors["log_z"] = math.sqrt(max(1 / effective - 1 / len(w), 0)) if math.isfinite(log_z) else math.inf
        figures |= {
            "log_z": log_z, "effective": effective, "log_likelihood": -figures["energy_data"] - log_z,
            "energy_fresh": float((w * np.asarray(fresh_free)).sum()),
        }  # fmt: skip
        spread = np.asarray(fresh_free, np.float64) - figures["energy_fresh"]
        errors["energy"] = math.sqrt(float((w**2 * spread**2).sum()))
        if drawn is not None and isinstance(observed_space(energy), Binary | Spin | Categorical):
            flat = [
                np.asarray(v).reshape(len(v), -1)
                for v in (*(visible_part(energy, x) for x in (drawn[0], fresh_states)), cast(energy, self.rows))
            ]
            near, far = (nearest_distances(states, flat[2]) for states in flat[:2])
            shares = np.asarray(drawn[1], np.float64)
            beyond = [float((w * (far > d)).sum() - (shares * (near > d)).sum()) for d in np.unique(near)]
            figures["unseen"] = max(0.0, *beyond)
            errors["unseen"] = math.sqrt(0.25 / effective + 0.25 * float((shares**2).sum()))
        return figures, errors

    def _mixing(self, energy: Energy, step: int) -> tuple[dict[str, float], float]:
        """Figures of a complete series of snapshots, and the R-hat above which their chains are unmixed."""
        uniform = [v for at, v in self.snapshots if (step - at) % self.gap == 0]
        if len(uniform) < _SNAPSHOTS or len(jax.tree.leaves(uniform[0])[0]) < 4:
            return {}, math.inf
        n = len(jax.tree.leaves(uniform[0])[0])
        energies = np.stack([np.asarray(_free_energies(energy, v)) for v in uniform])
        features = np.stack([_entries(observed_space(energy), v) for _, v in self.snapshots])
        tau, _ = autocorrelation_time([at for at, _ in self.snapshots], features)
        last, now = uniform[-1], energies[-1]
        moved = {
            step - at: float(np.std(now - np.asarray(_free_energies(model, last)))) for at, model in self.models.items()
        }
        # R-hat splits chains in halves. Even snapshots come first, then odd ones, so that the drift by learning is the same in both halves.
        disagreement = float(r_hat(np.concatenate([energies[::2], energies[1::2]]).T))
        figures = {"r_hat": 1.0 if math.isnan(disagreement) else disagreement, "tau": tau, "lag": _at_lag(moved, tau)}
        return figures, r_hat_threshold(n, _SNAPSHOTS)


@eqx.filter_jit
def _probe(
    phase: NegativePhase | None,
    annealing: AnnealedImportanceSampling | None,
    state: TrainState,
    rows: State,
    batch: State,
    key: Any,
) -> Any:
    """Mean F of the data; the phase's states (None: it draws none) with normalised weights and F; the annealed chains with log weights and F;
    and the smallest and largest mean activity of every hidden unit over the data."""
    energy, key = state.energy, fast_key(key)
    rows, batch = cast(energy, rows), cast(energy, batch)
    data_energy = jnp.mean(jax.vmap(data_energy_of(energy))(rows))
    drawn = fresh = activity = None
    if phase is not None:
        states, weights, _, _ = phase.draw(energy, state.negative, batch, None, key)
        free = jax.vmap(free_energy_of(energy))(states)
        weights = jnp.ones_like(free) if weights is None else weights.astype(free.dtype)
        drawn = states, weights / jnp.sum(weights), free
    if annealing is not None:
        log_weights, v, _ = annealing.anneal(energy, jax.random.fold_in(key, 1))
        v = cast(energy, v)
        fresh = log_weights, v, jax.vmap(free_energy_of(energy))(v)
    if isinstance(energy, BilinearLayers):
        means = energy.hidden_mean(complete(energy, jax.random.fold_in(key, 2), rows))
        activity = jnp.min(means, axis=0), jnp.max(means, axis=0)
    return data_energy, drawn, fresh, activity


@eqx.filter_jit
def _free_energies(energy: Energy, v: State) -> Any:
    return jax.vmap(free_energy_of(energy))(v)


def _entries(space: Space, v: State) -> np.ndarray:
    """States as rows of numbers whose products measure similarity: indicators for categories."""
    if isinstance(space, Product):
        return np.concatenate([_entries(s, part) for s, part in zip(space.spaces, v, strict=True)], axis=1)
    flat = np.asarray(v).reshape(len(v), -1)
    if isinstance(space, Categorical):
        return (flat[:, :, None] == np.arange(space.categories)).reshape(len(v), -1)
    return flat


def nearest_distances(states: np.ndarray, data: np.ndarray) -> np.ndarray:
    """The number of entries in which each state (n, entries) differs from the nearest observation (m, entries): shape (n,)."""
    blocks = np.array_split(states, -(-len(states) // 32))
    return np.concatenate([(block[:, None] != data[None]).sum(axis=2).min(axis=1) for block in blocks])


def _at_lag(moved: dict[int, float], tau: float) -> float:
    """The change over τ updates, interpolated between the known lags by a power law, and extrapolated beyond the longest as a random walk."""
    lags = sorted(moved)
    if tau >= lags[-1]:
        return moved[lags[-1]] * math.sqrt(tau / lags[-1])
    values = [max(moved[lag], 1e-12) for lag in lags]
    return float(np.exp(np.interp(math.log(tau), np.log(lags), np.log(values))))
