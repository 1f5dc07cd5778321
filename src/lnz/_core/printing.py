"""How numbers are printed. Without JAX, for what prints them at once."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping

_WIDE = 5  # an interval so many times as wide as value ± error says that the error is not what to believe


def is_believed(error: float, lower: float, upper: float) -> bool:
    """Whether an error is worth printing beside the interval from `lower` to `upper`, which may be infinite."""
    return not math.isfinite(upper - lower) or upper - lower <= _WIDE * 2 * error


def decimals(error: float) -> int:
    """The number of decimals that show two digits of an error of this size."""
    return min(max(1 - math.floor(math.log10(error)), 0), 12) if error > 0 and math.isfinite(error) else 4


def html_table(title: str, rows: Mapping[str, str]) -> str:
    """A table of two columns under a title, for notebooks."""
    lines = "".join(
        f'<tr><th style="text-align:left">{html.escape(name)}</th><td style="text-align:left">{html.escape(text)}</td></tr>'
        for name, text in rows.items()
    )
    return f"<table><caption>{html.escape(title)}</caption>{lines}</table>"
