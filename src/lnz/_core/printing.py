"""How numbers are printed. Without JAX, for what prints them at once."""

from __future__ import annotations

import math


def decimals(error: float) -> int:
    """The number of decimals that show two digits of an error of this size."""
    return min(max(1 - math.floor(math.log10(error)), 0), 12) if error > 0 and math.isfinite(error) else 4
