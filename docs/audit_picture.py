"""Draw the pictures of docs/guide-where-the-identity-fails.md: `python docs/audit_picture.py`."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import lnz
from lnz.report._audit_page import pictures
from lnz.report._style import BLUE, GREEN, ORANGE, Canvas


def heavy(theta, x):
    return theta * jnp.abs(x[0]) + 2 * jnp.log1p(jnp.abs(x[0]))


def examples(path: Path) -> None:
    """The five examples of the guide, a panel each."""
    with Canvas(path, width=11, height=5.6) as figure:
        panels = figure.subplots(2, 3).ravel()
        x = np.linspace(-0.2, 2, 1000)
        for theta, colour in ((1.3, BLUE), (1.5, ORANGE)):
            panels[0].plot(x, ((x >= 0) & (x <= theta)) * 1.0, color=colour, label=f"θ = {theta}")
        panels[0].set_title("The support moves: p̃ = 1 on [0, θ]")
        x = np.linspace(0, 1, 1000)
        for theta, colour in ((0.4, BLUE), (0.5, ORANGE)):
            panels[1].plot(x, np.exp(-1.0 * (x < theta)), color=colour, label=f"θ = {theta}")
        panels[1].set_title("A step in θ: ∂p̃ = 0 at almost every x")
        x = np.logspace(-2, 7, 1000)
        for theta, colour in ((0.3, BLUE), (0.03, GREEN), (0.003, ORANGE)):
            panels[2].plot(x, x * theta**3 * np.exp(-(theta**2) * x) / theta, color=colour, label=f"θ = {theta}")
        panels[2].set_xscale("log")
        panels[2].set_title("Mass that escapes: x θ² exp(-θ² x)")
        counts = np.logspace(1, 6, 60).astype(int)
        drawn = 1 / np.random.default_rng(0).random(counts[-1]) - 1
        normal = np.abs(np.random.default_rng(1).normal(size=counts[-1]))
        for values, colour, name in ((drawn, ORANGE, "p̃ = 1/(1+|x|)²"), (normal, BLUE, "a normal law")):
            panels[3].plot(counts, np.cumsum(values)[counts - 1] / counts, color=colour, label=name)
        panels[3].set_xscale("log")
        panels[3].set_title("No mean: the average of |x| over n draws")
        key = jax.random.key(0)
        w, v = jax.random.normal(key, (16, 3)), jax.random.normal(jax.random.fold_in(key, 1), (16,))
        rays = np.random.default_rng(0).normal(size=(24, 3))
        radii = np.linspace(0, 20, 100)
        for u in rays / np.linalg.norm(rays, axis=1, keepdims=True):
            energy = np.maximum(radii[:, None, None] * (np.asarray(w) @ u)[None, None], 0)[:, 0] @ np.asarray(v)
            panels[4].plot(radii, energy, color=ORANGE if energy[-1] < 0 else BLUE, linewidth=0.8)
        panels[4].set_title("Z is infinite: E of a ReLU network along rays")
        panels[5].axis("off")
        for panel in panels[:4]:
            panel.legend(loc="best")


def main() -> None:
    pictures_of = Path(__file__).parent / "pictures"
    examples(pictures_of / "identity_fails.png")
    energy = lnz.FunctionEnergy(jax.tree_util.Partial(heavy, jnp.asarray(0.0)), lnz.Real(1))
    pictures(pictures_of / "audit.png", lnz.audit(energy).numbers)


if __name__ == "__main__":
    main()
