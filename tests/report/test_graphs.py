"""Pictures of graphical models: drawn for any plan and any lattice, true to the figures, and refused where these do not fit."""

import math

import numpy as np
import pytest
from PIL import Image

import lnz
from lnz import report
from lnz._graphs import contraction_plan, orders


def grid(side, k=2):
    number = np.arange(side * side).reshape(side, side)
    edges = [*zip(number[:-1].flat, number[1:].flat, strict=True)]
    edges += [*zip(number[:, :-1].flat, number[:, 1:].flat, strict=True)]
    return [(int(i), int(j)) for i, j in edges], [k] * side * side


@pytest.mark.parametrize(("side", "k"), [(2, 5), (6, 2)])
def test_a_plan_knows_the_sizes_and_times_of_its_steps(side, k):
    scopes, sizes = grid(side, k)
    plan = orders.search(scopes, sizes, seconds=0.01)
    assert plan.sizes == tuple(sizes)
    assert len(plan.step_seconds) == len(plan.steps)
    assert math.isclose(sum(plan.step_seconds), plan.seconds)
    assert max(len(step.out) + len(step.removed) for step in plan.steps) == plan.width + 1
    assert math.isclose(max(plan.step_bits), (plan.width + 1) * math.log2(k))
    assert plan.table_bits[: len(scopes)] == [2 * math.log2(k)] * len(scopes)
    assert plan.table_bits[-1] == 0
    cut = contraction_plan.sliced(plan, sizes, plan.peak_bytes / 2, every=False)
    assert math.isclose(cut.slices * sum(cut.step_seconds), cut.seconds)


def test_a_large_step_is_predicted_to_take_longer():
    plan = orders.search([(0, 1), (1, 2), (2, 3), (3,)], [400] * 4, seconds=0.01)
    largest = int(np.argmax(plan.step_bits))
    assert plan.step_seconds[largest] == max(plan.step_seconds) > 5 * min(plan.step_seconds)


def drawn(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), float)


@pytest.mark.parametrize("case", ["grid", "slices", "one step", "no step"])
def test_a_plan_is_drawn(case, tmp_path):
    scopes, sizes = grid(6) if case in ("grid", "slices") else ([(0, 1), (1, 2)][: 1 + (case == "one step")], [2, 3, 4])
    plan = orders.search(scopes, sizes, seconds=0.01)
    if case == "slices":
        plan = contraction_plan.sliced(plan, sizes, plan.peak_bytes / 3, every=False)
        assert plan.sliced
    report.elimination(tmp_path / "plan.png", plan)
    pixels = drawn(tmp_path / "plan.png")
    orange = np.abs(pixels - np.array([0xC9, 0x75, 0x2D])).max(axis=2) < 10  # the largest step, in both panels
    assert orange.any() == (case != "no step")
    assert pixels.shape[1] > pixels.shape[0] > 300


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("shape", [(1, 7), (6, 3), (40, 30)])
def test_a_lattice_is_drawn(shape, periodic, tmp_path):
    if periodic and min(shape) == 1:
        shape = (2, 7)
    edges, _ = lnz.Ising.lattice(shape, 1.0, periodic=periodic).couplings.pairs()
    rng = np.random.default_rng(0)
    path = tmp_path / "lattice.png"
    report.lattice(path, np.tanh(rng.normal(size=shape)), edges, np.tanh(rng.normal(size=len(edges))), title="A glass")
    assert min(drawn(path).shape[:2]) > 150


def test_pairs_that_agree_are_red_and_pairs_that_differ_are_blue(tmp_path):
    edges, means = np.array([(0, 1), (1, 2), (3, 4), (4, 5)]), np.zeros((2, 3))
    warmth = []
    for sign in (1, -1):
        report.lattice(tmp_path / "lattice.png", means, edges, np.full(4, 0.8 * sign))
        pixels = drawn(tmp_path / "lattice.png")
        warmth.append((pixels[..., 0] - pixels[..., 2]).mean())
    assert warmth[0] > 1
    assert warmth[1] < -1


@pytest.mark.parametrize(
    ("means", "edges", "correlations", "words"),
    [
        (np.zeros(4), [(0, 1)], [0.5], "needs means .height, width."),
        (np.zeros((2, 2)), [(0, 1)], [0.5, 0.5], "needs means"),
        (np.zeros((2, 2)), [(0, 4)], [0.5], "outside 0 … 3"),
        (np.zeros((2, 2)), [(0, 1)], [1.5], "between -1 and 1"),
        (np.full((2, 2), np.nan), [(0, 1)], [0.5], "between -1 and 1"),
    ],
)
def test_what_is_no_lattice_is_refused(means, edges, correlations, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        report.lattice(tmp_path / "lattice.png", means, edges, correlations)
    assert not list(tmp_path.iterdir())
