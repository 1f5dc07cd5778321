"""Exact sums tell how far they are: stages, shares of the predicted work that end at 1, and answers that do not depend on being watched."""

import math
import time

import numpy as np
import pytest

from listing import random_graph
from lnz._cli import progress
from lnz._graphs.solver import EliminationBudget, Solver


def watched(budget=None, side=5):
    rng = np.random.default_rng(2)
    number = np.arange(side * side).reshape(side, side)
    down, across = (number[:-1].flat, number[1:].flat), (number[:, :-1].flat, number[:, 1:].flat)
    scopes = [(int(i), int(j)) for ends in (down, across) for i, j in zip(*ends, strict=True)]
    tables = [rng.normal(size=(2, 2)) for _ in scopes]
    said = []
    arguments = ([2] * side * side, scopes, tables, budget or EliminationBudget(search_seconds=0))
    return Solver(*arguments), Solver(*arguments, progress=lambda *told: said.append(told)), said


QUESTIONS = {
    "log Z": lambda solver: solver.log_partition(),
    "marginals": lambda solver: np.concatenate(solver.marginals()),
    "most probable states": lambda solver: solver.most_probable(),
    "samples": lambda solver: solver.sample(np.random.default_rng(0), 20),
}


@pytest.mark.parametrize("slices", [False, True])
@pytest.mark.parametrize("stage", QUESTIONS)
def test_shares_grow_to_one_and_change_no_answer(stage, slices):
    every = stage != "log Z"
    whole = watched()[0].plan(every=every)
    memory = 0.8 * (whole.all_bytes if every else whole.peak_bytes) if slices else None
    alone, solver, said = watched(EliminationBudget(search_seconds=0, max_memory=memory))
    assert (solver.plan(every=every).slices > 1) == slices
    np.testing.assert_array_equal(QUESTIONS[stage](solver), QUESTIONS[stage](alone))
    assert {name for name, _ in said} == {stage}
    shares = np.array([share for _, share in said])
    assert (np.diff(shares) >= 0).all()
    assert 0 < shares[0] < 0.1
    if stage == "samples":
        assert shares[-1] <= 1
    else:
        assert math.isclose(shares[-1], 1)
        assert shares[-2] < 1 - 1e-9


def test_a_share_is_that_of_the_predicted_time():
    _, solver, said = watched()
    solver.log_partition()
    plan = solver.plan()
    shares = np.cumsum(plan.step_seconds) / plan.seconds
    np.testing.assert_allclose([share for _, share in said], shares, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_any_graph_can_be_watched(seed):
    listed, said = random_graph(seed), []
    solver = Solver(
        listed.cardinalities,
        listed.scopes,
        listed.tables,
        EliminationBudget(),
        progress=lambda *told: said.append(told),
    )
    assert math.isclose(solver.log_partition(), listed.log_z, rel_tol=1e-9, abs_tol=1e-9)
    solver.marginals()
    assert all(0 <= share <= 1 for _, share in said)


def test_what_a_watcher_raises_ends_the_work():
    def stop(stage, share):
        raise KeyboardInterrupt

    _, solver, _ = watched()
    solver.progress = stop
    with pytest.raises(KeyboardInterrupt):
        solver.log_partition()


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_elsewhere_than_on_a_terminal_a_line_now_and_then(clock, capsys):
    with progress.Work("a plan") as work:
        for second in range(26):
            clock[0] = 100.0 + second
            work("marginals", second / 100)
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "a plan"
    assert len(lines) == 2
    assert lines[0].startswith("marginals: 10 %  ")
    assert lines[0].endswith("90 s left") or lines[0].endswith("2 min left")
    assert lines[1].startswith("marginals: 20 %  ")
    assert "B  " in lines[0]


def test_on_a_terminal_a_bar_after_half_a_second(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.Work() as work:
        work("log Z", 0.0)
        clock[0] += 0.4
        work("log Z", 0.2)
        assert capsys.readouterr().err == ""
        clock[0] += 0.6
        work("log Z", 0.5)
    shown = capsys.readouterr().err
    assert "log Z" in shown
    assert "50%" in shown
    assert "1 s left" in shown


def test_on_a_terminal_a_bar_at_once_where_the_work_is_long(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.Work("a plan", seconds=60) as work:
        work("log Z", 0.001)
        shown = capsys.readouterr().err
    assert "a plan" in shown
    assert "log Z" in shown
    assert "left" not in shown


@pytest.mark.parametrize("shown", [True, False])
def test_short_or_unwanted_work_shows_nothing(shown, clock, capsys):
    with progress.Work(shown=shown) as work:
        for share in (0.0, 0.5, 1.0):
            work("log Z", share)
            clock[0] += 0.1 if shown else 100
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_a_step_is_said_within_a_second(terminal, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: terminal)
    with progress.Step("compiling"):
        time.sleep(1)
        said = capsys.readouterr().err
    assert "compiling" in said
    assert ("0:00:0" in said) == terminal  # the time beside the spinner


def test_a_short_step_says_nothing(capsys):
    with progress.Step("compiling"):
        pass
    with progress.Step("unwanted", shown=False) as step:
        step.say("more")
        time.sleep(0.6)
    assert capsys.readouterr().err == ""
