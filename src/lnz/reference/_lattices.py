"""Exact log Z of small discrete models with any couplings: enumeration, and transfer matrices on grids and tori."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

_LARGEST_RANGE = 300.0  # nats: keeps every reachable weight far above the smallest float64


def potts_critical_beta(states: int) -> float:
    """ln(1 + √q), the critical inverse temperature of the q-state Potts model p ∝ exp(β Σ δ) (Potts, 1952)."""
    return math.log1p(math.sqrt(states))


def brute_force_log_z(
    log_weight: Callable[[Int[np.ndarray, "batch variables"]], Float[np.ndarray, " batch"]],
    cardinalities: Sequence[int],
    *,
    block: int = 1 << 14,
) -> float:
    """log Σ_x exp(log_weight(x)), in nats, over every x with x_i in 0..cardinalities[i]-1.

    Args:
        log_weight: maps a block of states, int64 (batch, variables), to their log-weights; -inf is a forbidden state.
        cardinalities: the number of values of each variable; at most 2^26 states in all.
        block: states evaluated at once.

    Raises:
        ValueError: too many states, an empty variable, or a log-weight that is NaN or +inf.
    """
    shape = tuple(int(c) for c in cardinalities)
    total = math.prod(shape)
    if min(shape, default=1) < 1 or total > 1 << 26:
        raise ValueError(f"Enumeration needs 1 to 2^26 states, got {total}.")
    running = -np.inf
    for start in range(0, total, block):
        flat = np.arange(start, min(start + block, total))
        states = np.stack(np.unravel_index(flat, shape), axis=-1) if shape else np.zeros((1, 0), np.int64)
        values = np.asarray(log_weight(states), np.float64)
        if np.isnan(values).any() or (values == np.inf).any():
            raise ValueError("The log-weight of some state is NaN or +inf.")
        running = np.logaddexp(running, np.logaddexp.reduce(values))
    return float(running)


def ising_brute_force_log_z(
    couplings: Float[np.ndarray, "spins spins"], field: Float[np.ndarray, " spins"], *, beta: float = 1.0
) -> float:
    """log Z, in nats, of p(s) ∝ exp(β [Σ_{i<j} J_ij s_i s_j + Σ_i h_i s_i]), s_i = ±1, by enumeration.

    Args:
        couplings: J, symmetric with a zero diagonal; at most 26 spins.
        field: h.
        beta: inverse temperature β.

    Raises:
        ValueError: shapes that do not match, or J not symmetric, not finite or with a diagonal.

    Example:
        >>> round(ising_brute_force_log_z(np.array([[0.0, 0.7], [0.7, 0.0]]), np.zeros(2)), 10)  # ln(4 cosh 0.7)
        1.6135645905
    """
    spins = len(field)
    if couplings.shape != (spins, spins) or field.shape != (spins,):
        raise ValueError(f"Couplings {couplings.shape} do not fit a field of shape {field.shape}.")
    if not (np.array_equal(couplings, couplings.T) and np.isfinite(couplings).all() and np.isfinite(field).all()):
        raise ValueError("Couplings must be finite and symmetric, and the field finite.")
    if np.diag(couplings).any():
        raise ValueError("Couplings must have a zero diagonal: s_i² = 1 is a constant.")

    def log_weight(states):
        s = 2.0 * states - 1.0
        return beta * (0.5 * np.einsum("bi,ij,bj->b", s, couplings, s, optimize=True) + s @ field)

    return brute_force_log_z(log_weight, [2] * spins)


def grid_log_z(
    unary: Float[np.ndarray, "rows columns states"],
    right: Float[np.ndarray, "rows row_bonds states states"],
    down: Float[np.ndarray, "column_bonds columns states states"],
) -> float:
    """log Z, in nats, of any pairwise model with q states per site on a grid, cylinder or torus, by transfer matrices.

        Z = Σ_x exp( Σ_ij unary[i,j,x_ij] + Σ_ij right[i,j,x_ij,x_i(j+1)] + Σ_ij down[i,j,x_ij,x_(i+1)j] )

    A row is added as one q x q product per site, so the cost is rows · columns · q^(columns+1), times q^columns when the
    rows close into a ring (a trace). Make the columns the shorter side.

    Args:
        unary: log-potential of each site, float64; -inf forbids a state.
        right: log-potentials of (i,j)-(i,j+1), the first index that of (i,j). columns-1 bonds per row leave the side
            free; `columns` bonds close it, the last coupling (i,columns-1) to (i,0).
        down: log-potentials of (i,j)-(i+1,j): rows-1 bonds per column, or `rows` to close the rows.

    Returns:
        log Z, -inf where every state is forbidden.

    Raises:
        ValueError: shapes that do not match, NaN or +inf, more row states than fit in memory, or log-potentials that
            span so many nats that weights could underflow.

    Source: Kramers and Wannier, Physical Review 60, 252 (1941), row by row as a product of sparse factors.
    """
    rows, columns, q = unary.shape
    closed_columns, closed_rows = right.shape[1] == columns, down.shape[0] == rows
    if right.shape != (rows, columns if closed_columns else columns - 1, q, q):
        raise ValueError(f"`right` has shape {right.shape}, for unary of shape {unary.shape}.")
    if down.shape != (rows if closed_rows else rows - 1, columns, q, q):
        raise ValueError(f"`down` has shape {down.shape}, for unary of shape {unary.shape}.")
    if (closed_columns and columns < 2) or (closed_rows and rows < 2):
        raise ValueError("A closed side needs a length of at least 2: a site cannot be its own neighbour.")
    size = q**columns
    if size > (1 << 12 if closed_rows else 1 << 20):
        raise ValueError(f"{q}^{columns} row states are too many. Make the columns the shorter side.")
    _check_span(unary, right, down)

    digits = np.stack(np.unravel_index(np.arange(size), (q,) * columns))
    log_z = 0.0

    def scaled_exp(log_values):
        nonlocal log_z
        peak = float(log_values.max())
        log_z += peak
        return np.exp(log_values - peak) if peak > -np.inf else np.zeros_like(log_values)

    def row_weight(i):
        log_row = np.zeros(size)
        for j in range(columns):
            log_row += unary[i, j][digits[j]]
        for j in range(right.shape[1]):
            log_row += right[i, j][digits[j], digits[(j + 1) % columns]]
        return scaled_exp(log_row)[:, None]

    weight = row_weight(0)
    state = np.diag(weight[:, 0]) if closed_rows else weight  # (row states, first-row states or 1)
    for i in range(down.shape[0]):
        for j in range(columns):  # contract the leading site, append its successor
            state = state.reshape(q, -1).T @ scaled_exp(down[i, j])
        state = state.reshape(-1, size).T
        if i + 1 < rows:
            state = state * row_weight(i + 1)
        peak = float(state.max())
        if peak == 0.0 or log_z == -np.inf:
            return -np.inf
        log_z += math.log(peak)
        state = state / peak
    total = float(np.trace(state) if closed_rows else state.sum())
    return log_z + math.log(total) if total > 0 and log_z > -np.inf else -np.inf


def ising_grid_log_z(
    right: Float[np.ndarray, "rows row_bonds"],
    down: Float[np.ndarray, "column_bonds columns"],
    field: Float[np.ndarray, "rows columns"] | None = None,
    *,
    beta: float = 1.0,
) -> float:
    """log Z, in nats, of p(s) ∝ exp(β [Σ J_ij s_i s_j + Σ h_i s_i]) on a grid, cylinder or torus with any couplings.

    right and down are the bonds (i,j)-(i,j+1) and (i,j)-(i+1,j); their shapes tell which sides are closed, as in `grid_log_z`,
    whose cost and errors hold here: (rows, columns-1) and (rows-1, columns) is a free grid, and (rows, columns) twice is a
    torus.
    """
    shape = (right.shape[0], down.shape[1])
    spins = np.array([-1.0, 1.0])
    pair = beta * np.multiply.outer(spins, spins)
    field = np.zeros(shape) if field is None else field
    if field.shape != shape:
        raise ValueError(f"The field has shape {field.shape}, for a grid of shape {shape}.")
    return grid_log_z(beta * field[..., None] * spins, right[..., None, None] * pair, down[..., None, None] * pair)


def potts_grid_log_z(
    right: Float[np.ndarray, "rows row_bonds"],
    down: Float[np.ndarray, "column_bonds columns"],
    *,
    states: int,
    beta: float = 1.0,
) -> float:
    """log Z, in nats, of the Potts model p(x) ∝ exp(β Σ J_ij δ(x_i, x_j)) on a grid or torus with any couplings.

    right, down, cost and errors are those of `ising_grid_log_z`. Source: Potts, Proceedings of the Cambridge
    Philosophical Society 48, 106 (1952).
    """
    pair = beta * np.eye(states)
    unary = np.zeros((right.shape[0], down.shape[1], states))
    return grid_log_z(unary, right[..., None, None] * pair, down[..., None, None] * pair)


def potts_torus_log_z(rows: int, columns: int, *, states: int, beta: float) -> float:
    """log Z, in nats, of the Potts model p(x) ∝ exp(β Σ δ(x_i, x_j)) on a rows x columns torus with J = 1.

    Example:
        >>> round(potts_torus_log_z(3, 3, states=3, beta=potts_critical_beta(3)), 9)
        19.688939732
    """
    return potts_grid_log_z(np.ones((rows, columns)), np.ones((rows, columns)), states=states, beta=beta)


def _check_span(*potentials: np.ndarray) -> None:
    """Raise ValueError for log-potentials whose span could push a reachable weight below the smallest float64.

    Without forbidden states two entries of one transfer vector differ by at most the span of one row, and the starting
    row adds its own. With forbidden states the bound is the span of the whole grid.
    """
    if any(np.isnan(p).any() or (p == np.inf).any() for p in potentials):
        raise ValueError("Log-potentials must not be NaN or +inf; -inf forbids a state.")
    forbidden = any((p == -np.inf).any() for p in potentials)
    span = 0.0
    for p in potentials:
        rows, bonds = p.shape[:2]
        flat = p.reshape(rows, bonds, math.prod(p.shape[2:]))
        if flat.size == 0:
            continue
        finite = np.isfinite(flat)
        spread = np.where(finite, flat, -np.inf).max(axis=2) - np.where(finite, flat, np.inf).min(axis=2)
        per_row = np.maximum(spread, 0.0).sum(axis=1)
        span += float(per_row.sum() if forbidden else per_row.max())
    if span > _LARGEST_RANGE:
        where = "the grid (it has forbidden states)" if forbidden else "one row"
        raise ValueError(
            f"Log-potentials span {span:.0f} nats over {where}; at most {_LARGEST_RANGE:.0f} can be summed."
        )
