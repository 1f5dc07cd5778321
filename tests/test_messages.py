"""Refusals that no room's own tests raise: each names its cause, before any work."""

import numpy as np
import pytest

import lnz
from lnz._core.random import fast_key
from lnz.apps._segmentation.reading import read_segmentation
from lnz.apps._segmentation.segment_settings import Settings
from lnz.interop import PgmpyModel
from lnz.learning._negative.negative_phase import between

REFERENCE = lnz.reference
GRAPH = lnz.FactorGraph([2], [], [])
PGMPY = PgmpyModel(GRAPH, ["rain"], [["no", "yes"]])


def field_on_a_grid():
    return lnz.RandomField(lnz.crf.Grid((2, 2)), np.zeros((2, 2, 2)), np.zeros((2, 2)))


REFUSED = {
    "random bits": (lambda: fast_key(7, bits="dice"), "bits='dice' is unknown; choose one of"),
    "an edge to itself": (lambda: lnz.Ising.sparse([[1, 1]], [1.0], n=2), "an edge joins site 1 to itself"),
    "a grid as a chain": (
        lambda: field_on_a_grid().potentials(),
        "only a field on a Chain has the potentials of a chain",
    ),
    "a triple as an edge": (lambda: lnz.crf.Graph(3, [(0, 1, 2)]), "an edge must be a pair of nodes"),
    "a parent that is not there": (lambda: lnz.crf.Tree([-1, 7]), "node 1 has the parent 7, but nodes are 0 … 1"),
    "durations": (
        lambda: lnz.SemiMarkovChain(np.zeros((3, 2, 1)), [[0.0]]).encode([1, 1], [0, 0]),
        "the durations add up to 2",
    ),
    "a variable of pgmpy's": (lambda: PGMPY.numbers({"snow": "no"}), "the model has no variable 'snow'"),
    "a state of pgmpy's": (lambda: PGMPY.numbers({"rain": "some"}), "variable 'rain' has no state 'some'"),
    "a space": (lambda: lnz.io.check(np.zeros((2, 2)), "complex"), "unknown space 'complex'. Choose one of binary"),
    "text": (lambda: lnz.io.check(np.array([["a"], ["b"]]), "real"), "data: the array "),
    "a part without data": (
        lambda: lnz.io.split(3, fractions=(0.9, 0.05, 0.05)),
        "3 data leave none for the validation part",
    ),
    "no probabilities": (lambda: lnz.io.write_uai_mar("x.MAR", [np.array([-1.0, 2.0])]), "holds no probabilities"),
    "a share": (lambda: between("the share", 2.0, 0, 1), "the share must be above 0 and at most 1, but is 2.0"),
    "an estimator": (lambda: lnz.routes.ParallelTempering(estimator="mean"), "unknown estimator 'mean': choose one of"),
    "a side": (lambda: lnz.routes.MiniBucket(side="left"), 'side must be "upper" or "lower", but is \'left\''),
    "epochs": (lambda: Settings(epochs=0), "epochs must be at least 1, but is 0"),
    "potentials": (
        lambda: REFERENCE.potts_grid_log_z(np.full((1, 1), np.nan), np.zeros((0, 2)), states=2),
        "must not be NaN",
    ),
    "a chain of one site": (
        lambda: REFERENCE.phi4_chain_log_z(1, mass_squared=1.0, quartic=1.0),
        "at least 2 sites, got 1",
    ),
    "a stiff chain": (
        lambda: REFERENCE.phi4_chain_log_z(4, mass_squared=-1e6, quartic=1.0),
        "The transfer operator needs .* nodes, more than 2000",
    ),
    "a Gaussian chain": (
        lambda: REFERENCE.gaussian_chain_log_z(4, mass_squared=0.0),
        r"at least 2 sites and m² > 0, got 4 and 0.0",
    ),
    "a torus as a grid": (
        lambda: REFERENCE.kac_ward_log_z(np.zeros((2, 2)), np.zeros((2, 2)), beta=1.0),
        "do not make a free grid",
    ),
    "an odd number of wells": (lambda: REFERENCE.many_well_log_density(np.zeros(3)), "in pairs of coordinates, got 3"),
    "a half-width": (lambda: REFERENCE.rosenbrock_log_z(half_width=0.0), r"must lie in \(0, 1000\], got 0.0"),
    "more successes than trials": (
        lambda: REFERENCE.product_binomial_log_z(trials=3, successes=4),
        "between 0 and the trials, got 4 of 3",
    ),
}


@pytest.mark.wrong_types
@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


FILES = {
    "two arrays": (
        {"one": np.ones((3, 2)), "two": np.ones((3, 2))},
        None,
        "holds several arrays, .* Say which by its name",
    ),
    "another name": ({"one": np.ones((3, 2))}, "three", "holds no array called 'three'. It holds 'one'"),
    "too few labels": ({"data": np.ones((3, 2)), "labels": np.ones(2)}, None, "Give one label per row, or remove"),
}


@pytest.mark.parametrize("case", FILES)
def test_archives_that_leave_a_question(tmp_path, case):
    arrays, name, message = FILES[case]
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    with pytest.raises(lnz.io.DataError, match=message):
        lnz.io.load(path, name=name)


def test_a_file_that_is_no_image(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(lnz.io.DataError, match=r"is neither a folder, an image nor an .npz file"):
        read_segmentation(tmp_path / "notes.txt")
