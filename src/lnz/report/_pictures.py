"""The four pictures of a run: curves, samples beside data, filters or couplings, and moments of the model against the data's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from lnz._core.energy import Energy
from lnz._core.estimate import Estimate
from lnz._models.deep_boltzmann_machine import DeepBoltzmannMachine
from lnz._models.rbm import RBM, GaussianRBM
from lnz.report._style import BLUE, GREEN, INK, ORANGE, QUIET, Canvas, matplotlib
from lnz.routes._annealing.path_diagnostics import AlongPath

_TILES = 10  # a side of a sheet of samples
_FILTERS = 144
_ROWS = 60  # of a heat map of samples
_PAIRS = 20_000  # points of the scatter of covariances

Units = tuple[
    np.ndarray, np.ndarray
]  # mean and standard deviation of every variable of real data, which are drawn in these units


def curves(
    path: Path,
    records: list[dict[str, Any]],
    *,
    levels: dict[str, float],
    baseline: float,
    unit: str,
) -> None:
    """Curves of a run: the held-out log-likelihood with its bounds from log Z, the energy gap and the relative gradient error,
    or the objective without Z.

    Args:
        path: a PNG.
        records: lines of `metrics.jsonl`.
        levels: final log-likelihoods by part of the data, in nats.
        baseline: the log-likelihood of independent units on the part of the data that `levels` has of test, validation, train first, in nats.
        unit: the name of one example.
    """
    looks = [r for r in records if r["validation"] is not None]
    gaps = [r for r in records if r["figures"].get("energy_gap") is not None]
    without_z = any("objective" in r["figures"] for r in records)
    with Canvas(path, width=9.2, height=3.2 if not looks else 3.4) as figure:
        panels = figure.subplots(1, 2 if without_z else 3, width_ratios=(1.6, 1) if without_z else (1.6, 1, 1))
        _likelihood_panel(panels[0], looks, levels, baseline, unit)
        if without_z:
            _series(panels[1], records, "objective", "The objective", f"mean per {unit}", ORANGE)
            return
        _series(panels[1], gaps, "energy_gap", "Energy gap", "nats, data less model", BLUE)
        if gaps:
            panels[1].axhline(0, color=QUIET, linewidth=0.8)
        _series(panels[2], records, "disagreement", "Disagreement of the phases", "in one update", ORANGE)
        panels[2].set_ylim(bottom=0)


def annealing_path(path: Path, seen: AlongPath, estimate: Estimate) -> None:
    """What annealed chains saw: energies along β, the effective sample size, and the works of both directions with their crossing.

    Args:
        path: a PNG.
        seen: from `lnz.routes._annealing.path_diagnostics.along_path`.
        estimate: of log Z, whose interval is marked.
    """
    betas, mean, sd = (np.asarray(x, float) for x in (seen.betas, seen.mean, seen.sd))
    with Canvas(path, width=11.4, height=3.2) as figure:
        energies, effective, works = figure.subplots(1, 3, width_ratios=(1, 1, 1.4))
        energies.set_title("Energy along the path")
        energies.set_ylabel("base less model, nats")
        energies.fill_between(betas, mean - sd, mean + sd, color=BLUE, alpha=0.18, linewidth=0, label="± their spread")
        energies.plot(betas, mean, color=BLUE, linewidth=1.2, label="mean of the chains")
        energies.legend(loc="best")
        effective.set_title("Effective sample size")
        effective.set_ylabel("share of the chains")
        effective.plot(betas, np.asarray(seen.effective), color=GREEN, linewidth=1.2)
        effective.set_ylim(0, 1.05)
        for axes in (energies, effective):
            axes.set_xlabel("inverse temperature β")
        _works_panel(works, seen, estimate)


def _works_panel(axes: Any, seen: AlongPath, estimate: Estimate) -> None:
    forward, reverse = (np.asarray(x, float) for x in (seen.forward, seen.reverse))
    forward, reverse = forward[np.isfinite(forward)], reverse[np.isfinite(reverse)]
    both, value = np.concatenate([forward, reverse]), float(estimate.value)
    axes.set_title("Log weights, whose densities cross at log Z")
    axes.set_xlabel("nats")
    axes.set_ylabel("density")
    if both.size:
        low, high = np.quantile(both, [0.002, 0.998])
        room = 0.03 * (high - low) + 1e-6
        bins = np.linspace(min(low, value) - room, max(high, value) + room, 31)
        start = "exact samples" if seen.exact else "the forward ends"
        for x, colour, label in ((forward, BLUE, "forward"), (reverse, ORANGE, f"reverse, from {start}")):
            axes.hist(x, bins=bins, density=True, histtype="stepfilled", color=colour, alpha=0.25)
            axes.hist(x, bins=bins, density=True, histtype="step", color=colour, linewidth=1.2, label=label)
    lower, upper = float(estimate.lower), float(estimate.upper)
    if math.isfinite(lower) and math.isfinite(upper):
        axes.axvspan(
            lower, upper, color=QUIET, alpha=0.25, linewidth=0, label=f"{100 * estimate.confidence:g} % interval"
        )
    axes.axvline(value, color=INK, linewidth=1.2, label="log Z, estimated")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _likelihood_panel(
    axes: Any, looks: list[dict[str, Any]], levels: dict[str, float], baseline: float, unit: str
) -> None:
    axes.set_title("Log-likelihood")
    axes.set_ylabel(f"nats per {unit}")
    _update_axis(axes, max((r["step"] for r in looks), default=1), ticks=5)
    if looks:
        steps = [r["step"] for r in looks]
        values = np.array([r["validation"]["log_likelihood"] for r in looks], float)
        low, high = (np.array([_or_nan(r["validation"][side]) for r in looks]) for side in ("lower", "upper"))
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.18, linewidth=0)
        axes.plot(steps, values, color=BLUE, marker="o", markersize=2.5, linewidth=1.2, label="validation, as it went")
    judge = next((name for name in ("test", "validation", "train") if name in levels), "")
    styles = {"train": (QUIET, "--"), "validation": (BLUE, "--"), "test": (GREEN, "-")}
    for name, value in levels.items():
        if name == "validation" and "test" in levels:
            continue
        colour, dash = styles[name]
        axes.axhline(value, color=colour, linestyle=dash, linewidth=1, label=f"{name}, at the end")
    axes.axhline(baseline, color=ORANGE, linestyle=":", linewidth=1.2, label=f"factorised model, {judge}")
    axes.legend(loc="center right")


def _series(axes: Any, records: list[dict[str, Any]], name: str, title: str, label: str, colour: str) -> None:
    axes.set_title(title)
    axes.set_ylabel(label)
    _update_axis(axes, max((r["step"] for r in records), default=1), ticks=3)
    if records:
        steps = [r["step"] for r in records]
        axes.plot(steps, [r["figures"][name] for r in records], color=colour, marker="o", markersize=2.5, linewidth=1.2)
    else:
        axes.text(
            0.5, 0.5, "none for this model or phase", ha="center", va="center", transform=axes.transAxes, color=QUIET
        )
        axes.set_xticks([])
        axes.set_yticks([])


def samples(
    path: Path,
    drawn: np.ndarray,
    data: np.ndarray,
    image_shape: tuple[int, int] | None,
    *,
    name: str = "Data",
    units: Units | None = None,
) -> None:
    """Samples of the model beside data: sheets of images, or heat maps with one row a state.

    Args:
        path: a PNG.
        drawn: states of the model.
        data: states of the data.
        image_shape: (height, width), where a state is an image.
        name: what the data are called.
        units: mean and scale of real data that are not images.
    """
    drawn, data = (states.reshape(len(states), -1) for states in (drawn, data))
    low, high = _range(data)
    cmap: Any = "Greys"
    levels, step = None, 2 if low == -1 else 1  # spins have no 0
    if data.dtype.kind in "iu" and high - low < 20 and image_shape is None:
        levels = np.arange(int(low), int(high) + 1, step)
        cmap, low, high = _few_colours(len(levels)), low - step / 2, high + step / 2
    if units is not None and image_shape is None:
        drawn, data = ((states - units[0]) / units[1] for states in (drawn, data))
        low, high, cmap = -3.0, 3.0, "RdBu_r"
    with Canvas(path, width=9.2, height=4.9 if image_shape else 4.2) as figure:
        left, right = figure.subplots(1, 2)
        for axes, states, title in ((left, data, name), (right, drawn, "Samples of the model")):
            axes.set_title(title)
            axes.grid(False)
            if image_shape is None:
                shown = axes.imshow(states[:_ROWS], cmap=cmap, vmin=low, vmax=high, aspect="auto")
                axes.set_xlabel("variable")
                axes.set_ylabel("state")
            else:
                sheet = _sheet(states[: _TILES**2], image_shape, _TILES)
                ink = _with_gaps("Greys_r" if high > 1 else "Greys")
                shown = axes.imshow(np.ma.masked_invalid(sheet), cmap=ink, vmin=low, vmax=high)
                _bare(axes)
        if image_shape is None:
            label = None if units is None else "standard deviations from the mean"
            bar = figure.colorbar(shown, ax=[left, right], shrink=0.8, pad=0.01, label=label, ticks=levels)
            bar.outline.set_visible(False)


def filters(path: Path, energy: Energy, image_shape: tuple[int, int] | None, *, units: Units | None = None) -> None:
    """What the model has learned: a hidden unit's weights as an image each, or all weights or couplings as a heat map.

    Weights of real data are drawn in the data's standard units.
    """
    if not isinstance(energy, RBM | GaussianRBM | DeepBoltzmannMachine):
        return _couplings(path, energy)
    weights = energy.weights[0] if isinstance(energy, DeepBoltzmannMachine) else energy.weights  # those at the data
    weights = np.asarray(weights, float) if units is None else np.asarray(weights, float) / units[1][:, None]
    if image_shape is None or weights.shape[0] != math.prod(image_shape):
        order = np.argsort(-np.linalg.norm(weights, axis=0))
        return _heat_map(path, weights[:, order].T, "Weights", "visible unit", "hidden unit, strongest first")
    order = np.argsort(-np.linalg.norm(weights, axis=0))[:_FILTERS]
    across = math.ceil(math.sqrt(1.6 * len(order)))
    down = math.ceil(len(order) / across)
    sheet = _sheet(weights[:, order].T, image_shape, across)
    top = float(np.quantile(np.abs(weights[:, order]), 0.999)) or 1.0
    with Canvas(
        path, width=9.2, height=max(1.8, 0.6 + 8.6 * down / across * image_shape[0] / image_shape[1])
    ) as figure:
        axes = figure.subplots()
        axes.set_title(f"Weights of {len(order)} of {weights.shape[1]} hidden units, strongest first")
        shown = axes.imshow(np.ma.masked_invalid(sheet), cmap=_with_gaps("RdBu_r"), vmin=-top, vmax=top)
        _bare(axes)
        figure.colorbar(shown, ax=axes, shrink=0.6, aspect=30, pad=0.01).outline.set_visible(False)
    return None


def _couplings(path: Path, energy: Any) -> None:
    strength = np.asarray(energy.couplings.matrix(), float)
    if strength.ndim == 2:
        return _heat_map(path, strength, "Couplings J", "site", "site", square=True)
    # Tables J_ij(a, b): their norm in the zero-sum gauge, where every row and column sums to 0.
    centred = strength - strength.mean(axis=1, keepdims=True)
    centred = centred - centred.mean(axis=3, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=(1, 3)))
    return _heat_map(path, norms, "Couplings: norm of J_ij in the zero-sum gauge", "site", "site", square=True)


def _heat_map(path: Path, values: np.ndarray, title: str, across: str, down: str, *, square: bool = False) -> None:
    signed = bool((values < 0).any())
    top = float(np.abs(values).max()) or 1.0
    with Canvas(path, width=6.6 if square else 9.2, height=5.4 if square else 4.6) as figure:
        axes = figure.subplots()
        axes.set_title(title)
        axes.grid(False)
        cmap, low = ("RdBu_r", -top) if signed else ("Blues", 0.0)
        shown = axes.imshow(values, cmap=cmap, vmin=low, vmax=top, aspect="equal" if square else "auto")
        axes.set_xlabel(across)
        axes.set_ylabel(down)
        figure.colorbar(shown, ax=axes, shrink=0.8).outline.set_visible(False)


def moments(
    path: Path, drawn: np.ndarray, data: np.ndarray, *, categories: int | None = None, units: Units | None = None
) -> None:
    """Means and covariances of the model's samples against the training data's: points on the diagonal agree.

    For categorical data the variables are the indicators of the categories. For real data quantiles take the means' place, in standard
    units.
    """
    first, second = (_indicators(states.reshape(len(states), -1), categories) for states in (data, drawn))
    with Canvas(path, width=9.2, height=4.4) as figure:
        left, right = figure.subplots(1, 2)
        if units is None:
            _scatter(left, first.mean(axis=0), second.mean(axis=0), "Means", size=10)
        else:
            first, second = ((states - units[0]) / units[1] for states in (first, second))
            levels = (0.05, 0.25, 0.5, 0.75, 0.95)
            x, y = (np.quantile(states, levels, axis=0).ravel() for states in (first, second))
            _scatter(left, x, y, "Quantiles at 5, 25, 50, 75 and 95 %, standardised", size=10)
        if first.shape[1] > 1 and len(first) > 1 and len(second) > 1:
            i, j = np.triu_indices(first.shape[1], 1)
            if len(i) > _PAIRS:
                chosen = np.random.default_rng(0).choice(len(i), _PAIRS, replace=False)
                i, j = i[chosen], j[chosen]
            x, y = (np.cov(states, rowvar=False)[i, j] for states in (first, second))
            _scatter(right, x, y, "Covariances of pairs" + ("" if units is None else ", standardised"), size=3)
        else:
            right.set_axis_off()


def _indicators(states: np.ndarray, categories: int | None) -> np.ndarray:
    states = states[:20_000]
    if categories is None:
        return states.astype(float)
    return (states[:, :, None] == np.arange(categories)).reshape(len(states), -1).astype(float)


def _scatter(axes: Any, x: np.ndarray, y: np.ndarray, title: str, *, size: float) -> None:
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    pad = 0.04 * (high - low) or 1.0
    axes.plot([low - pad, high + pad], [low - pad, high + pad], color=QUIET, linewidth=0.8, zorder=1)
    size = max(size, min(14, 3000 / len(x)))
    axes.scatter(x, y, s=size, color=BLUE, alpha=0.55, linewidths=0, zorder=2, rasterized=True)
    axes.set_title(title)
    axes.set_xlabel("training data")
    axes.set_ylabel("samples of the model")
    axes.set_aspect("equal")
    axes.set_xlim(low - pad, high + pad)
    axes.set_ylim(low - pad, high + pad)
    axes.locator_params(nbins=6)
    if len(x) > 2 and x.std() > 0 and y.std() > 0:
        words = f"correlation {np.corrcoef(x, y)[0, 1]:.3f}"
        axes.text(0.04, 0.96, words, transform=axes.transAxes, va="top", color=INK, fontsize=8)


def _sheet(images: np.ndarray, shape: tuple[int, int], across: int) -> np.ndarray:
    """Images as tiles, row by row, with gaps of NaN between them."""
    height, width = shape
    gap = max(1, round(min(shape) / 10))
    down = math.ceil(len(images) / across)
    sheet = np.full((down * (height + gap) - gap, across * (width + gap) - gap), np.nan)
    for i, image in enumerate(images):
        top, left = (i // across) * (height + gap), (i % across) * (width + gap)
        sheet[top : top + height, left : left + width] = image.reshape(shape)
    return sheet


def _range(data: np.ndarray) -> tuple[float, float]:
    low, high = float(data.min()), float(data.max())
    return (low, high) if high > low else (low, low + 1)


def _few_colours(count: int) -> Any:
    """White and black for two values, otherwise a colour each."""
    if count <= 2:
        return matplotlib().colormaps["Greys"].resampled(count)
    colours = matplotlib().colormaps["tab10" if count <= 10 else "tab20"].colors
    return matplotlib("colors").ListedColormap(colours[:count])


def _bare(axes: Any) -> None:
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _with_gaps(name: str) -> Any:
    return matplotlib().colormaps[name].with_extremes(bad="white" if name != "Greys" else "#dfe4e8")


def _update_axis(axes: Any, last: int, *, ticks: int) -> None:
    FuncFormatter = matplotlib("ticker").FuncFormatter
    MaxNLocator = matplotlib("ticker").MaxNLocator

    axes.set_xlabel("updates")
    axes.set_xlim(0, 1.02 * last)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=True))


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
