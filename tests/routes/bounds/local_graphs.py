"""Random small graphs with cycles or without, for local methods."""

from __future__ import annotations

import numpy as np

from graphs.small_graphs import Listed


def random_local(seed: int, *, arity: int = 3, forest: bool = False) -> Listed:
    """Up to 7 variables of 1 to 4 values and 12 factors of 0 to `arity` variables: weak and violent tables, some with zeros."""
    rng = np.random.default_rng(seed)
    while True:
        cardinalities = tuple(int(k) for k in rng.integers(1, 5, size=rng.integers(0, 8)))
        if np.prod(cardinalities, dtype=float) <= 1500:
            break
    n, scopes = len(cardinalities), []
    part = np.arange(n)
    for _ in range(rng.integers(0, 13)):
        scope = [int(i) for i in rng.permutation(n)[: rng.integers(0, min(n, arity) + 1)]]
        if forest:
            if len(set(part[scope])) < len(scope):
                continue
            part[np.isin(part, part[scope])] = part[scope[0]] if scope else 0
        scopes.append(tuple(scope))
    strength, zeros = rng.choice([0.5, 3.0, 60.0, 700.0]), rng.choice([0.0, 0.0, 0.1, 0.4])
    tables = [strength * rng.normal(size=[cardinalities[i] for i in scope]) for scope in scopes]
    tables = [np.where(rng.random(table.shape) < zeros, -np.inf, table) for table in tables]
    return Listed(cardinalities, scopes, tables)
