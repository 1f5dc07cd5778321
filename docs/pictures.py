"""Draw the README's picture from a real run: `lnz train digits`, then `python docs/pictures.py runs/digits`.

The mixture that the curve is compared with is fitted here, by benchmarks/digits_baselines.py (about half a minute).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import lnz

ROOT = Path(__file__).parents[1]
BLUE, ORANGE, GREEN, INK, QUIET = "#2a6ca0", "#c4722a", "#3f8f4e", "#1f2a33", "#7b8794"
SIDE = 7  # tiles along an edge of a sheet


def sheet(tiles: np.ndarray) -> np.ndarray:
    """SIDE x SIDE images of 8 x 8, with gaps of NaN."""
    page = np.full((SIDE * 9 - 1, SIDE * 9 - 1), np.nan)
    for i, tile in enumerate(tiles[: SIDE**2]):
        top, left = i // SIDE * 9, i % SIDE * 9
        page[top : top + 8, left : left + 8] = tile.reshape(8, 8)
    return page


def curve(axes: Any, run: Path) -> None:
    """The held-out log-likelihood as training went, with its limits, and the two baselines."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import digits_baselines as baselines

    looks = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [look["step"] for look in looks]
    value, low, high = ([look["validation"][name] for look in looks] for name in ("log_likelihood", "lower", "upper"))
    axes.fill_between(steps, low, high, color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(steps, value, color=BLUE, marker="o", markersize=3, linewidth=1.3)
    train, validation, _ = baselines.parts()
    mixture, _ = baselines.best_mixture(train, validation, restarts=3)
    for model, name, colour in (
        (mixture, "mixture of Bernoullis", GREEN),
        (baselines.factorised(train), "independent pixels", ORANGE),
    ):
        level = model.log_likelihood(validation).mean()
        axes.axhline(level, color=colour, linestyle="--", linewidth=1.1)
        axes.annotate(
            name, (steps[-1], level), xytext=(0, 3), textcoords="offset points", ha="right", va="bottom", color=colour
        )
    axes.set_title("Held-out log-likelihood, nats per image")
    axes.set_xlabel("updates")
    axes.set_ylim(top=max(high) + 0.5)
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)


def images(axes: Any, tiles: np.ndarray, title: str, cmap: Any, top: float, bottom: float = 0) -> None:
    axes.imshow(np.ma.masked_invalid(sheet(tiles)), cmap=cmap, vmin=bottom, vmax=top)
    axes.set_title(title)
    axes.set_axis_off()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder of `lnz train digits`")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/pictures/digits.png")
    arguments = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"font.size": 8.5, "axes.titlesize": 9.5, "axes.titlelocation": "left", "axes.edgecolor": QUIET}
        | dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    )
    grey = matplotlib.colormaps["Greys"].copy()
    grey.set_bad("#dfe4e8")
    figure, panels = plt.subplots(1, 3, figsize=(10, 3.3), width_ratios=(1.35, 1, 1), layout="constrained")
    curve(panels[0], arguments.run)
    images(panels[1], np.load(arguments.run / "samples.npy"), "Samples of the model", grey, 1)
    weights = np.asarray(lnz.load(arguments.run / "model.lnz").weights)  # pyright: ignore[reportAttributeAccessIssue]
    strongest = np.argsort(-np.linalg.norm(weights, axis=0))
    top = float(np.quantile(np.abs(weights), 0.998))
    images(panels[2], weights[:, strongest].T, "Weights of hidden units", "RdBu_r", top, -top)
    arguments.out.parent.mkdir(exist_ok=True)
    figure.savefig(arguments.out, dpi=130, facecolor="white", metadata={"Software": None})
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
