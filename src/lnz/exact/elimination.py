"""Elimination: log Z, every marginal, exact samples and the most probable state of any graph whose tables can be multiplied out."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz.energies.graph import FactorGraph, packed, states_of
from lnz.energy import Energy, as_energy, widen
from lnz.estimate import Estimate, exact
from lnz.exact import contraction, orders
from lnz.exact.orders import Plan, Scope
from lnz.route import Route
from lnz.spaces import State

_LOOK = 0.5  # seconds of search that suffice to tell whether a model is affordable


@dataclasses.dataclass(frozen=True)
class Elimination(Route):
    """Exact sums over a discrete model with factors, variable after variable (bucket or junction-tree elimination).

    The tables of `energy.factors()` are multiplied and summed along a binary contraction tree. The gradient, which is every factor's marginal
    (T1), is the reverse mode over the same tree; samples and the most probable state walk it from the top. All in NumPy and float64: an
    irregular tree would take JAX longer to compile than to compute. It works under `jit`, `vmap` and `grad` by a callback; second derivatives
    are not served.

    Attributes:
        max_memory: bytes that tables may take; by default half of the machine's memory. Wider trees are cut into slices that fit.
        max_seconds: where the predicted time is longer, the route refuses, with the figures.
        search_seconds: time to look for an order; by default a third of the predicted work.
        seed: of that search.

    Raises:
        ValueError: where the tree is too dear even in slices.

    Source: Dechter 1999, "Bucket elimination"; Darwiche 2003, "A differential approach to inference in Bayesian networks" (the gradient).

    Example:
        >>> import lnz
        >>> torus = lnz.Ising.lattice((8, 8), 0.5, periodic=True)
        >>> print(round(float(lnz.log_partition(torus, route=lnz.Elimination()).value), 4))  # Kaufman 1949: 66.3446
        66.3446
    """

    max_memory: float | None = None
    max_seconds: float = 3600.0
    search_seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_memory", "max_seconds", "search_seconds"):
            value = getattr(self, name)
            if value is not None and not value > (-1 if name == "search_seconds" else 0):
                raise ValueError(f"{name} must be a number above 0, but is {value!r}")

    def refusal(self, energy: Energy) -> str | None:
        if not hasattr(energy, "factors"):
            return f"{type(energy).__name__} has no factors"
        if energy.least_width > 48:
            return f"the width of its graph is at least {energy.least_width}"
        try:
            self._structure_plan(energy)
        except ValueError as error:
            return str(error)
        return None

    def cost(self, energy: Energy) -> float:
        graph = _structure(energy)
        return 10 ** self._structure_plan(energy).log10_flops / max(1, len(graph.scopes))

    def _structure_plan(self, energy: Energy) -> Plan:
        """The plan from the structure alone, as if every configuration were possible."""
        graph = _structure(energy)
        zeros = [np.zeros(shape) for shape in graph.shapes]
        reduced = _reduced(graph.cardinalities, graph.scopes, [zeros[t] for t in graph.table_of])
        quick = dataclasses.replace(self, search_seconds=_LOOK if self.search_seconds is None else self.search_seconds)
        try:
            return quick._plan(reduced, every=False)
        except ValueError:
            first = _planned(tuple(reduced.scopes), tuple(reduced.sizes), quick.search_seconds, self.seed)
            if first.seconds > 1e3 * self.max_seconds:
                raise  # no search would mend that
        return self._plan(reduced, every=False)

    def plan(self, energy: Any) -> Plan:
        """The contraction tree that would be used, with its width, cost and memory, before any of it is run."""
        return self._plan(self._reduce(energy)[1], every=False)

    def _plan(self, reduced: _Reduced, *, every: bool) -> Plan:
        memory = _half_the_memory() if self.max_memory is None else self.max_memory
        sizes = tuple(map(len, reduced.domains))
        best = _planned(tuple(reduced.scopes), sizes, self.search_seconds, self.seed)
        fitted = orders.sliced(best, sizes, memory, every=every)
        if not every:  # slices that stay in the caches can be much quicker than the whole
            near = orders.sliced(best, sizes, min(memory, 2.0**26), every=False)
            fitted = near if near.seconds < 0.8 * fitted.seconds else fitted
        need = fitted.all_bytes if every else fitted.peak_bytes
        seconds = fitted.seconds * (4 if every else 1)
        if need > memory or seconds > self.max_seconds:
            raise ValueError(
                f"too dear to be summed exactly: {fitted}, where max_memory is {orders._size(memory)} and max_seconds {self.max_seconds:g}. "
                "Raise them, give evidence, or take a stochastic route"
            )
        return fitted

    def _reduce(self, energy: Any) -> tuple[FactorGraph, _Reduced]:
        energy = as_energy(energy)
        if not hasattr(energy, "factors"):
            raise ValueError(f"Elimination cannot serve {type(energy).__name__}: it has no factors")
        if energy.least_width > 48:
            raise ValueError(
                f"Elimination cannot serve {type(energy).__name__}: the width of its graph is at least {energy.least_width}"
            )
        graph = widen(energy).factors()  # pyright: ignore[reportAttributeAccessIssue]
        return graph, _reduce_flat(graph, np.asarray(graph.log_potentials))

    def log_partition(self, energy: Energy, key: Any = None) -> Estimate:
        graph = widen(energy).factors()  # pyright: ignore[reportAttributeAccessIssue]
        flat, dtype = graph.log_potentials, jnp.result_type(float)

        def run(flat: Any) -> tuple[Any, ...]:
            begun = time.perf_counter()
            if np.isnan(flat).any():
                return tuple(np.asarray(x, dtype) for x in (np.nan, 0, 0, 0))
            log_z, plan = self._log_z(_reduce_flat(graph, np.asarray(flat)))
            figures = (log_z, plan.width, plan.peak_bytes, time.perf_counter() - begun)
            return tuple(np.asarray(x, dtype) for x in figures)

        shape = jax.ShapeDtypeStruct((), dtype)
        call = _once(lambda flat: jax.pure_callback(run, (shape,) * 4, flat, vmap_method="sequential"))
        log_z, width, memory, seconds = call(flat)
        largest = jnp.max(jnp.where(jnp.isfinite(flat), jnp.abs(flat), 0), initial=0).astype(dtype)
        scale = 1 + largest + jnp.abs(jnp.where(jnp.isfinite(log_z), log_z, 0))
        rounding = jnp.finfo(dtype).eps * (32 + math.sqrt(len(graph.scopes))) * scale
        return exact(
            log_z,
            rounding=jax.lax.stop_gradient(rounding),
            route=f"elimination of {len(graph.cardinalities):,} variables from {len(graph.scopes):,} factors",
            diagnostics={"width": width, "memory": memory, "seconds": seconds},
        )

    def mean_gradient(self, energy: Energy, key: Any = None) -> Any:
        """E[-∂E] from every factor's marginal, by one pass up the tree and one down."""
        parameters, constants = eqx.partition(energy, eqx.is_inexact_array)

        def factors(parameters: Any) -> FactorGraph:
            return widen(eqx.combine(parameters, constants)).factors()

        graph = factors(parameters)

        def run(flat: Any) -> Any:
            if np.isnan(flat).any():
                return np.full(flat.shape, np.nan, flat.dtype)
            beliefs = self._factor_beliefs(graph, _reduce_flat(graph, np.asarray(flat)))
            total = [np.zeros(shape) for shape in graph.shapes]
            for t, belief in zip(graph.table_of, beliefs, strict=True):
                total[t] += belief
            return np.concatenate([np.zeros(0), *(table.ravel() for table in total)]).astype(flat.dtype)

        flat, pull_back = jax.vjp(lambda p: factors(p).log_potentials, parameters)
        shape = jax.ShapeDtypeStruct(flat.shape, flat.dtype)
        return pull_back(_once(lambda flat: jax.pure_callback(run, shape, flat, vmap_method="sequential"))(flat))[0]

    def expectation(self, energy: Energy, f: Callable[[State], Any], key: Any = None) -> Estimate:
        """E[f] of any f is a sum over all states: by enumeration where they are few enough. For marginals see `marginals` and `joint`."""
        from lnz.exact.enumeration import Enumeration

        route = Enumeration()
        reason = route.refusal(energy)
        if reason is not None:
            raise ValueError(
                f"Elimination gives log Z, its gradient, marginals and samples, but E[f] of any f needs all states, and {reason}: average f "
                "over `sample(energy, key, n)`"
            )
        return route.expectation(energy, f, key)

    def marginals(self, energy: Any) -> list[np.ndarray]:
        """P(x_i) of every variable, in the order of the space's entries: arrays (k_i,). All zero where Z is."""
        graph, reduced = self._reduce(energy)
        leaves = self._beliefs(reduced)
        home: dict[int, int] = {}
        for leaf in sorted(range(len(leaves)), key=lambda leaf: -leaves[leaf].size):
            home.update(dict.fromkeys(reduced.scopes[leaf], leaf))  # the smallest table of every variable
        found = []
        for i, k in enumerate(graph.cardinalities):
            belief = np.zeros(k)
            if i in home:
                axes = tuple(axis for axis, v in enumerate(reduced.scopes[home[i]]) if v != i)
                belief[reduced.domains[i]] = leaves[home[i]].sum(axis=axes)
            elif reduced.possible:
                belief[reduced.domains[i]] = 1 / len(reduced.domains[i])
            found.append(belief)
        return found

    def factor_marginals(self, energy: Any) -> list[np.ndarray]:
        """P(x_scope) of every factor of `energy.factors()`, with the shape of its table. All zero where Z is."""
        return self._factor_beliefs(*self._reduce(energy))

    def joint(self, energy: Any, variables: Sequence[int]) -> np.ndarray:
        """P(x_a, x_b, …) of any few variables, the axes in their order."""
        graph = as_energy(energy).factors()  # pyright: ignore[reportAttributeAccessIssue]
        shape = tuple(graph.cardinalities[i] for i in variables)
        more = jnp.append(graph.log_potentials, jnp.zeros(math.prod(shape), graph.log_potentials.dtype))
        number = len(graph.shapes)
        wider = packed(
            graph.cardinalities,
            (*graph.scopes, tuple(variables)),
            (*graph.table_of, number),
            (*graph.shapes, shape),
            more,
        )
        return self.factor_marginals(wider)[-1]

    def entropy(self, energy: Any) -> float:
        """-Σ p log p over all variables (latent ones included), in nats: log Z - Σ_f E[φ_f]."""
        graph, reduced = self._reduce(energy)
        log_z, _ = self._log_z(reduced)
        _refuse_impossible(log_z)
        beliefs, tables = self._factor_beliefs(graph, reduced), _tables(graph, np.asarray(graph.log_potentials))
        return log_z - sum(
            float(b.ravel() @ np.where(b > 0, t, 0).ravel()) for b, t in zip(beliefs, tables, strict=True)
        )

    def sample(self, energy: Any, key: PRNGKeyArray, n: int) -> State:
        """n independent exact samples of all variables, latent ones included: states of `energy.space`."""
        energy = as_energy(energy)
        _, reduced = self._reduce(energy)
        rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,), jnp.uint32)))
        plan = self._plan(reduced, every=True)
        sizes = reduced.sizes

        def nodes(leaves: list[np.ndarray]) -> list[Any]:
            return contraction.upward(plan, _tabled(plan, leaves), sizes, keep=True)

        logs = np.array([contraction.log_total(nodes(leaves)[-1]) for _, leaves in _slices(plan, reduced)])
        _refuse_impossible(logs.max(initial=-np.inf) if reduced.possible else -np.inf)
        shares = np.exp(logs - logs.max())
        counts = rng.multinomial(n, shares / shares.sum())
        parts = [np.zeros((0, len(sizes)), np.int64)]
        for count, (fixed, leaves) in zip(counts, _slices(plan, reduced), strict=True):
            if count:
                labels = contraction.descend(plan, nodes(leaves), sizes, int(count), contraction.drawn(rng))
                labels[:, list(fixed)] = list(fixed.values())
                parts.append(labels)
        labels = np.concatenate(parts)
        for i in reduced.free:
            labels[:, i] = rng.integers(sizes[i], size=n)
        if len(parts) > 2:
            labels = labels[rng.permutation(n)]
        return states_of(energy.space, reduced.restore(labels))

    def map_state(self, energy: Any) -> State:
        """The most probable state of all variables (one of them, where several are): argmax p, a state of `energy.space`."""
        energy = as_energy(energy)
        _, reduced = self._reduce(energy)
        plan = self._plan(reduced, every=True)
        best, labels = -np.inf, np.zeros((1, len(reduced.sizes)), np.int64)
        for fixed, leaves in _slices(plan, reduced):
            nodes = contraction.upward_max(plan, leaves, reduced.sizes)
            if float(nodes[-1].values) > best:
                best = float(nodes[-1].values)
                labels = contraction.descend(plan, nodes, reduced.sizes, 1, contraction.largest)
                labels[:, list(fixed)] = list(fixed.values())
        _refuse_impossible(best if reduced.possible else -np.inf)
        return jax.tree.map(lambda x: x[0], states_of(energy.space, reduced.restore(labels)))

    def _log_z(self, reduced: _Reduced) -> tuple[float, Plan]:
        plan = self._plan(reduced, every=False)
        if not reduced.possible:
            return -math.inf, plan
        parts = [
            contraction.log_total(contraction.upward(plan, _tabled(plan, leaves), reduced.sizes, keep=False)[-1])
            for _, leaves in _slices(plan, reduced)
        ]
        return float(np.logaddexp.reduce(parts)) + reduced.constant, plan

    def _beliefs(self, reduced: _Reduced) -> list[np.ndarray]:
        """The marginals of the reduced tables; all zero where Z is."""
        total = [np.zeros(table.shape) for table in reduced.tables]
        if not reduced.possible:
            return total
        plan = self._plan(reduced, every=True)
        running = -np.inf
        for fixed, leaves in _slices(plan, reduced):
            nodes = contraction.upward(plan, _tabled(plan, leaves), reduced.sizes, keep=True)
            log_z = contraction.log_total(nodes[-1])
            if log_z == -np.inf:
                continue
            new = float(np.logaddexp(running, log_z))
            old_share, share = math.exp(running - new), math.exp(log_z - new)
            running = new
            for leaf, belief in enumerate(contraction.downward(plan, nodes, reduced.sizes)):
                scope = reduced.scopes[leaf]
                rest = tuple(v for v in scope if v not in fixed)
                if old_share < 1:
                    total[leaf] *= old_share
                place = tuple(fixed.get(v, slice(None)) for v in scope)
                total[leaf][place] += share * contraction.permuted(belief, plan.scopes[leaf], rest)
        return total

    def _factor_beliefs(self, graph: FactorGraph, reduced: _Reduced) -> list[np.ndarray]:
        """The marginals of the graph's factors, with zeros at the values that were pruned."""
        beliefs, found = self._beliefs(reduced), []
        whole = [len(d) == k for d, k in zip(reduced.domains, graph.cardinalities, strict=True)]
        for f, scope in enumerate(graph.scopes):
            home, live = reduced.home[f], [i for i in scope if len(reduced.domains[i]) > 1]
            part = np.asarray(float(reduced.possible))
            if home >= 0:
                inside = reduced.scopes[home]
                axes = tuple(axis for axis, v in enumerate(inside) if v not in live)
                part = beliefs[home].sum(axis=axes) if axes else beliefs[home]
                part = contraction.permuted(part, [v for v in inside if v in live], live)
            shape = [graph.cardinalities[i] for i in scope]
            if reduced.possible and all(whole[i] for i in scope):
                found.append(part.reshape(shape))
                continue
            belief = np.zeros(shape)
            if reduced.possible:
                domains = [reduced.domains[i] for i in scope]
                belief[np.ix_(*domains)] = part.reshape([len(domain) for domain in domains])
            found.append(belief)
        return found


def _once(f: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """A function whose derivative is refused in words."""
    once = jax.custom_jvp(f)

    @once.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        raise ValueError(
            "Elimination gives first derivatives only. For second derivatives of log Z pass route=lnz.Enumeration(), or take differences"
        )

    return once


class _Reduced(NamedTuple):
    """A graph without what needs no elimination: impossible values, variables of one value, factors inside others.

    Attributes:
        domains: the values of every variable that are left.
        scopes, tables: the log-potentials that are left, over variables of two and more values; at least two, so that there is a tree.
        home: the table that holds each factor of the graph; -1 for a constant.
        free: variables in no table.
        constant: what is added to log Z.
        possible: False where some variable has no value left: Z = 0.
    """

    domains: list[np.ndarray]
    scopes: list[Scope]
    tables: list[np.ndarray]
    home: list[int]
    free: list[int]
    constant: float
    possible: bool

    @property
    def sizes(self) -> list[int]:
        return [len(domain) for domain in self.domains]

    def restore(self, labels: np.ndarray) -> np.ndarray:
        """The values in the graph's own numbering."""
        return np.stack([d[labels[:, i]] for i, d in enumerate(self.domains)], axis=1) if self.domains else labels


def _reduced(cardinalities: Sequence[int], scopes: Sequence[Scope], tables: Sequence[np.ndarray]) -> _Reduced:
    domains, possible = _domains(cardinalities, scopes, tables)
    if not possible:
        return _Reduced(domains, [(), ()], [np.zeros(()), np.zeros(())], [-1] * len(scopes), [], -math.inf, False)
    whole = [len(domain) == k for domain, k in zip(domains, cardinalities, strict=True)]
    live = [len(domain) > 1 for domain in domains]
    constant, merged, name_of = 0.0, {}, []
    for scope, table in zip(scopes, tables, strict=True):
        if not all(whole[i] for i in scope):
            table = table[np.ix_(*(domains[i] for i in scope))]
        kept = [i for i in scope if live[i]]
        table = table.reshape([len(domains[i]) for i in kept])
        name = tuple(sorted(kept))
        if not name:
            constant += float(table)
        else:
            table = contraction.permuted(table, kept, name)
            merged[name] = merged[name] + table if name in merged else table
        name_of.append(name)
    if constant == -math.inf:
        return _Reduced(domains, [(), ()], [np.zeros(()), np.zeros(())], [-1] * len(scopes), [], -math.inf, False)
    owner = _containers(list(merged), len(domains))
    tables_of: dict[Scope, np.ndarray] = {name: merged[name] for name in merged if owner[name] == name}
    for name, table in merged.items():
        if owner[name] != name:
            shape = [len(domains[i]) if i in name else 1 for i in owner[name]]
            tables_of[owner[name]] = tables_of[owner[name]] + table.reshape(shape)
    names = list(tables_of)
    number = {name: i for i, name in enumerate(names)}
    used = set(itertools.chain.from_iterable(names))
    free = [i for i in range(len(domains)) if live[i] and i not in used]
    constant += sum(math.log(len(domains[i])) for i in free)
    home = [number[owner[name]] if name else -1 for name in name_of]
    padding = max(0, 2 - len(names))
    return _Reduced(
        domains,
        names + [()] * padding,
        [tables_of[name] for name in names] + [np.zeros(())] * padding,
        home,
        free,
        constant,
        True,
    )


def _domains(
    cardinalities: Sequence[int], scopes: Sequence[Scope], tables: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], bool]:
    """The values of every variable that no single factor forbids, and whether every variable has one."""
    alive = [np.ones(k, bool) for k in cardinalities]
    hard = [f for f, table in enumerate(tables) if table.size and table.min() == -np.inf]
    allowed = {f: tables[f] > -np.inf for f in hard}
    of: dict[int, list[int]] = {}
    for f in hard:
        for i in scopes[f]:
            of.setdefault(i, []).append(f)
    queue, queued = list(hard), set(hard)
    while queue:
        f = queue.pop()
        queued.discard(f)
        scope, table = scopes[f], allowed[f]
        for axis, i in enumerate(scope):
            if not alive[i].all():
                table = table & alive[i].reshape([-1 if a == axis else 1 for a in range(len(scope))])
        if not table.any():
            return [np.flatnonzero(a) for a in alive], False
        for axis, i in enumerate(scope):
            left = np.asarray(table.any(axis=tuple(a for a in range(len(scope)) if a != axis)))
            if (left != alive[i]).any():
                alive[i] = left
                for g in of[i]:
                    if g not in queued:
                        queued.add(g)
                        queue.append(g)
    return [np.flatnonzero(a) for a in alive], True


def _containers(names: Sequence[Scope], n: int) -> dict[Scope, Scope]:
    """For every scope the one that it is merged into: a maximal scope that contains it, or itself."""
    of: list[list[Scope]] = [[] for _ in range(n)]
    owner: dict[Scope, Scope] = {}
    for name in sorted(names, key=lambda s: (-len(s), s)):
        rarest = min(name, key=lambda i: len(of[i]))
        mine = set(name)
        owner[name] = min((s for s in of[rarest] if mine.issubset(s)), key=len, default=name)
        if owner[name] == name:
            for i in name:
                of[i].append(name)
    return owner


def _reduce_flat(graph: FactorGraph, flat: np.ndarray) -> _Reduced:
    return _reduced(graph.cardinalities, graph.scopes, _tables(graph, flat))


def _tables(graph: FactorGraph, flat: np.ndarray) -> list[np.ndarray]:
    """The log-potentials of every factor."""
    flat = np.asarray(flat, np.float64)
    ends = np.append(graph.offsets, len(flat))
    tables = [flat[a:b].reshape(s) for a, b, s in zip(ends[:-1], ends[1:], graph.shapes, strict=True)]
    return [tables[t] for t in graph.table_of]


def _slices(plan: Plan, reduced: _Reduced) -> Iterator[tuple[dict[int, int], list[np.ndarray]]]:
    """Every joint value of the sliced variables, and the tables given it, their axes in the tree's order."""
    for values in itertools.product(*(range(len(reduced.domains[v])) for v in plan.sliced)):
        fixed = dict(zip(plan.sliced, values, strict=True))
        leaves = []
        for leaf, (scope, table) in enumerate(zip(reduced.scopes, reduced.tables, strict=True)):
            rest = [v for v in scope if v not in fixed]
            part = table[tuple(fixed.get(v, slice(None)) for v in scope)]
            leaves.append(np.asarray(contraction.permuted(part, rest, plan.scopes[leaf]), order="C"))
        yield fixed, leaves


def _tabled(plan: Plan, leaves: Sequence[np.ndarray]) -> list[contraction.Table]:
    return [contraction.from_logs(table, scope) for table, scope in zip(leaves, plan.scopes, strict=False)]


def _structure(energy: Energy) -> FactorGraph:
    """The graph of an energy, whose log-potentials may be traced or not be computed at all."""
    parameters, constants = eqx.partition(energy, eqx.is_inexact_array)
    found: list[FactorGraph] = []

    def build(parameters: Any) -> Array:
        found.append(eqx.combine(parameters, constants).factors())
        return found[0].log_potentials

    jax.eval_shape(build, parameters)
    return found[0]


def _planned(scopes: tuple[Scope, ...], sizes: tuple[int, ...], seconds: float | None, seed: int) -> Plan:
    found = _searched(scopes, sizes, seconds, seed)
    if isinstance(found, str):
        raise ValueError(found)
    return found


@functools.lru_cache(maxsize=64)
def _searched(scopes: tuple[Scope, ...], sizes: tuple[int, ...], seconds: float | None, seed: int) -> Plan | str:
    """The plan, or why there is none: both are remembered."""
    try:
        return orders.plan(scopes, sizes, seconds=seconds, seed=seed)
    except ValueError as error:
        return str(error)


def _half_the_memory() -> float:
    return 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _refuse_impossible(log_z: float) -> None:
    if log_z == -math.inf:
        raise ValueError("no state is possible: Z = 0. Check the evidence and the tables' zeros")
