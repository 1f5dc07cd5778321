"""Pictures of graphical models: what eliminating one takes, step by step, and pairwise marginals on a lattice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lnz._graphs.contraction_plan import ContractionPlan, size_text
from lnz.report._style import BLUE, INK, ORANGE, QUIET, Canvas, matplotlib

_LIGHT = "#b9cbd9"
_ROOM = 1.15  # above the highest point, as a factor


def elimination(path: Path, plan: ContractionPlan) -> None:
    """The contraction tree of a plan with the sizes of its tables, and beside it the size of every step, with the peak marked.

    A step multiplies two tables and sums variables out. Its size is the number of joint values of all variables that meet in it, in bits (log2):
    for variables of two values, their number.

    Args:
        path: a PNG.
        plan: from `Elimination.plan`.
    """
    bits = np.array(plan.table_bits)
    with Canvas(path, width=9.6, height=3.6) as figure:
        tree, profile = figure.subplots(1, 2, width_ratios=(1.15, 1))
        slices = f", {plan.slices:,} slices" if plan.sliced else ""
        tree.set_title(
            f"{plan.leaves:,} tables{slices}: {size_text(plan.peak_bytes)} at the peak, about {plan.seconds:.2g} s"
        )
        _draw_tree(figure, tree, plan, bits)
        _draw_profile(profile, plan, bits[plan.leaves :])


def _draw_profile(axes: Any, plan: ContractionPlan, made: np.ndarray) -> None:
    met, count = np.array(plan.step_bits), len(plan.steps)
    axes.set_xlabel("step")
    axes.set_ylabel("bits: log2 of the joint values")
    axes.set_xlim(0.5, max(count, 1) + 0.5)
    axes.set_ylim(0, _ROOM * max(met.max(initial=1.0), 1.0))
    axes.locator_params(axis="both", integer=True)
    if not count:
        return
    edges = np.arange(count + 1) + 0.5
    axes.stairs(met, edges, fill=True, color=_LIGHT, linewidth=0, label="multiplied")
    axes.stairs(made, edges, fill=True, color=BLUE, linewidth=0, label="left after the sum")
    share = axes.twinx()
    done = np.concatenate([[0.0], np.cumsum(plan.step_seconds)])
    share.plot(edges, 100 * done / done[-1], color=INK, linewidth=1.2)
    share.set_ylim(0, 100 * _ROOM)
    share.set_yticks([0, 50, 100], ["0 %", "50 %", "100 %"])
    share.set_ylabel("predicted time (line)")
    share.grid(False)
    top = int(np.argmax(met))
    axes.plot(top + 1, met[top], "o", color=ORANGE, markersize=5, zorder=5)
    axes.legend(loc="upper left", ncols=2)
    variables = len(plan.steps[top].out) + len(plan.steps[top].removed)
    axes.set_title(f"The largest step: {variables} variables, 2^{met[top]:.3g} products")


def _draw_tree(figure: Any, axes: Any, plan: ContractionPlan, bits: np.ndarray) -> None:
    LineCollection = matplotlib("collections").LineCollection
    LinearSegmentedColormap = matplotlib("colors").LinearSegmentedColormap
    MaxNLocator = matplotlib("ticker").MaxNLocator

    place = _places(plan)
    pairs = [(plan.leaves + s, child) for s, step in enumerate(plan.steps) for child in (step.left, step.right)]
    pairs.sort(key=lambda pair: bits[pair[1]])
    shown = bits[[child for _, child in pairs]]
    lines = LineCollection(
        [place[list(pair)] for pair in pairs],
        cmap=LinearSegmentedColormap.from_list("bits", [_LIGHT, BLUE, INK]),
        array=shown,
        linewidths=0.5 + 3 * shown / max(shown.max(initial=1.0), 1.0),
        capstyle="round",
    )
    axes.add_collection(lines)
    if plan.steps:
        axes.plot(*place[plan.leaves + int(np.argmax(plan.step_bits))], "o", color=ORANGE, markersize=5, zorder=5)
    axes.autoscale_view()
    axes.invert_yaxis()
    axes.set_ylabel("steps to the end")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.grid(False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    bar = figure.colorbar(lines, ax=axes, shrink=0.6, aspect=30, pad=0.01)
    bar.set_label("bits of a table that goes up")
    bar.locator = MaxNLocator(nbins=6, integer=True)
    bar.outline.set_visible(False)


def _places(plan: ContractionPlan) -> np.ndarray:
    """Where every node stands (nodes, 2): across, leaves in the order of a walk and the rest amid their children; down, the steps to the root."""
    place = np.zeros((len(plan.scopes), 2))
    todo, leaf = [len(plan.scopes) - 1], 0
    while todo:
        node = todo.pop()
        if node < plan.leaves:
            place[node, 0], leaf = leaf, leaf + 1
        else:
            step = plan.steps[node - plan.leaves]
            place[[step.left, step.right], 1] = place[node, 1] + 1
            todo += [step.right, step.left]
    for s, step in enumerate(plan.steps):
        place[plan.leaves + s, 0] = 0.5 * (place[step.left, 0] + place[step.right, 0])
    return place


def lattice(
    path: Path,
    means: Float[Any, "height width"],
    edges: Int[Any, "bonds 2"],
    correlations: Float[Any, " bonds"],
    *,
    title: str = "Spins and pairs",
    label: str = "⟨s⟩ on sites, ⟨s s'⟩ on bonds",
) -> None:
    """Pairwise marginals on a lattice: the mean of every spin as the colour of its site, and of every pair's product as that of its bond.

    The thicker a bond, the further its pair is from independent signs. A bond around a periodic lattice is drawn as two stubs.

    Args:
        path: a PNG.
        means: ⟨s_i⟩, from -1 to 1, in the lattice's shape (one row for a chain).
        edges: the sites of every bond, numbered row by row.
        correlations: ⟨s_i s_j⟩ of every bond, from -1 to 1.
        title: of the picture.
        label: what the colours are.

    Raises:
        ValueError: where shapes do not fit, an edge names no site, or a value is not between -1 and 1.
    """
    LineCollection = matplotlib("collections").LineCollection

    sites, bonds, ends = np.asarray(means, float), np.asarray(correlations, float), np.asarray(edges, int)
    if sites.ndim != 2 or ends.shape != (len(bonds), 2) or bonds.ndim != 1:
        raise ValueError(
            f"a lattice needs means (height, width), edges (bonds, 2) and correlations (bonds,), but got {sites.shape}, {ends.shape} and "
            f"{bonds.shape}"
        )
    if ends.size and not (ends.min() >= 0 and ends.max() < sites.size):
        raise ValueError(f"an edge names a site outside 0 … {sites.size - 1}")
    if not (np.abs(np.concatenate([sites.ravel(), bonds])) <= 1 + 1e-6).all():
        raise ValueError("means and correlations of spins lie between -1 and 1, but some here do not")
    height, width = sites.shape
    pieces = [
        (piece, c) for (i, j), c in zip(ends, bonds, strict=True) for piece in _bond(int(i), int(j), height, width)
    ]
    pieces.sort(key=lambda piece: abs(piece[1]))
    strength = np.array([c for _, c in pieces])
    unit = min(0.42, 7.5 / max(height, width))  # inches between two sites
    colours: Any = {"cmap": "RdBu_r"}
    below = height < 6  # the scale of the colours
    size = {"width": max(3.2, unit * (width + 1) + 1.3), "height": unit * (height + 1) + (1.0 if below else 0.5)}
    with Canvas(path, **size) as figure:
        axes = figure.subplots()
        axes.set_title(title)
        lines = LineCollection(
            [piece for piece, _ in pieces],
            array=strength,
            linewidths=18 * unit * (0.1 + 0.9 * np.abs(strength)),
            **colours,
        )
        lines.set_clim(-1, 1)
        axes.add_collection(lines)
        down, across = np.indices(sites.shape)
        dots = axes.scatter(
            across,
            down,
            c=sites,
            s=(36 * unit) ** 2,
            vmin=-1,
            vmax=1,
            edgecolors=QUIET,
            linewidths=1.2 * unit,
            zorder=3,
            **colours,
        )
        axes.set_xlim(-0.7, width - 0.3)
        axes.set_ylim(height - 0.3, -0.7)
        axes.set_aspect("equal")
        axes.set_axis_off()
        bar = figure.colorbar(
            dots, ax=axes, location="bottom" if below else "right", shrink=0.7, aspect=30, pad=0.02, label=label
        )
        bar.set_ticks([-1, -0.5, 0, 0.5, 1])
        bar.outline.set_visible(False)


def _bond(i: int, j: int, height: int, width: int) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The lines, from (across, down) to (across, down), that show a bond: one, or two stubs where it goes around the lattice."""
    (y0, x0), (y1, x1) = divmod(i, width), divmod(j, width)
    around = [
        -np.sign(step) if abs(step) == length - 1 > 1 else step
        for step, length in ((x1 - x0, width), (y1 - y0, height))
    ]
    if around == [x1 - x0, y1 - y0]:
        return [((x0, y0), (x1, y1))]
    dx, dy = (0.45 * step for step in around)
    return [((x0, y0), (x0 + dx, y0 + dy)), ((x1, y1), (x1 - dx, y1 - dy))]
