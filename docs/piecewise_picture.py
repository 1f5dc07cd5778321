"""Draw the picture of docs/guide-piecewise-training.md from what its own code computes: `python docs/piecewise_picture.py`."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lnz
from lnz.report._style import Canvas

FOLDER = Path(__file__).parent
SHOWN = 4


def main() -> None:
    guide: dict[str, Any] = {}
    for code in re.findall(
        r"^```python\n(.*?)^```$", (FOLDER / "guide-piecewise-training.md").read_text(), re.S | re.M
    ):
        exec(code, guide)
    images, labels = guide["test_images"][:SHOWN], np.asarray(guide["test_labels"][:SHOWN])

    @jax.jit
    def marginals(nets: Any, scale: Any) -> Any:
        def one(x: Any) -> Any:
            unary, pairs = nets
            return lnz.marginals(lnz.RandomField(guide["grid"], unary(x), scale * pairs(x, guide["grid"])))

        return jax.vmap(one)(images)

    ways = {
        "unary net alone": marginals(guide["apart"], jnp.asarray(0.0)),
        "pieces, as published": marginals(guide["apart"], jnp.asarray(1.0)),
        "unaries inside": marginals(guide["inside"], jnp.asarray(1.0)),
        "exact likelihood": marginals(guide["exact"], jnp.asarray(1.0)),
    }
    colours = np.asarray([(0.93, 0.94, 0.95), (0.85, 0.28, 0.24), (0.20, 0.42, 0.72)])
    columns = {"image": np.clip((np.asarray(images) + 1.0) / 2, 0, 1), "truth": colours[labels]}
    columns |= {name: np.asarray(p) @ colours for name, p in ways.items()}
    with Canvas(FOLDER / "pictures/piecewise.png", width=10, height=10 / len(columns) * SHOWN + 0.3) as figure:
        panels = figure.subplots(SHOWN, len(columns))
        for column, (name, pixels) in enumerate(columns.items()):
            panels[0, column].set_title(name)
            for row in range(SHOWN):
                panels[row, column].imshow(pixels[row])
        for panel in panels.ravel():
            panel.grid(False)
            panel.set_xticks([])
            panel.set_yticks([])
            panel.spines[["left", "bottom"]].set_visible(False)


if __name__ == "__main__":
    main()
