"""Draw the picture of docs/guide-where-the-identity-fails.md: `python docs/audit_picture.py`."""

from pathlib import Path

import jax
import jax.numpy as jnp

import lnz
from lnz.report.audit_page import pictures


def heavy(theta, x):
    return theta * jnp.abs(x[0]) + 2 * jnp.log1p(jnp.abs(x[0]))


def main() -> None:
    energy = lnz.FunctionEnergy(jax.tree_util.Partial(heavy, jnp.asarray(0.0)), lnz.Real(1))
    pictures(Path(__file__).parent / "pictures" / "audit.png", lnz.audit(energy).numbers)


if __name__ == "__main__":
    main()
