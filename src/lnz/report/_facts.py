"""What is said of a likelihood and of log Z, alike on a terminal and on a page. Without JAX, so that it is there at once."""

from __future__ import annotations

from typing import Any

from lnz._core.printing import decimals, is_believed

_FEW = 50  # effective chains; below, the error of an estimate is unreliable


def number(value: float | None, error: float | None = None, *, most: int = 6, sign: bool = False) -> str:
    """A value with as many decimals as its error deserves, at least two."""
    if value is None:
        return "unknown"
    digits = max(2, min(most, decimals(error or 0.0)))
    return f"{value:{'+' if sign else ''}.{digits}f}"


def likelihood_text(found: dict[str, Any]) -> str:
    """A log-likelihood with the decimals that the error of log Z deserves, or, where that is exact, the error of the data."""
    at_least = "≥ " if found.get("is_limit") else ""
    return at_least + number(found["log_likelihood"], found["standard_error"] or found["data_standard_error"], most=4)


def error_text(found: dict[str, Any]) -> str:
    """The standard error from log Z, where the interval is not so wide that it is not to be believed."""
    error, lower, upper = found["standard_error"], found.get("lower"), found.get("upper")
    if found["known"] == "exact":
        return "exact"
    believed = lower is None or upper is None or is_believed(error, lower, upper)
    return f"{error:.2g}" if believed else "unknown"


def log_z_facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    """log Z, its interval, its guarantee and the method, by name."""
    exact, error, known = found["known"] == "exact", found["standard_error"], error_text(found)
    value = number(found["log_z"], None if exact else error)
    rows = [("log Z", value if known in ("exact", "unknown") else f"{value} ± {known}")]
    if not exact and (found["lower"], found["upper"]) != (None, None):
        between = f"{number(found['lower'], error)} to {number(found['upper'], error)}"
        rows.append(("Interval", f"{between}, at {100 * found['confidence']:g} % confidence"))
    assumption = f" on the assumption that {found['assumption']}" if found["assumption"] else ""
    rows.append(("Guarantee", found["known"] + assumption))
    effective = found["effective_sample_size"]
    rows.append(("Method", found["route"] + ("" if effective is None else f", effective sample size {effective:.0f}")))
    if effective is not None and effective < _FEW:
        rows.append(("Advice", "few chains dominate this estimate: measure again with more --temperatures or --chains"))
    return rows
