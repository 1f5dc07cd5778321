"""Whatever is wrong with what the user gives: one line that says what, exit code 2, and nothing touched."""

import json
import shutil

import numpy as np
import pytest
from cli_cases import call


def save(path, array):
    np.save(path, np.asarray(array))
    return path


def test_no_data_are_named():
    outcome = call("train")
    assert outcome.code == 2
    assert outcome.error == "train: no data were given. Name a file, or `digits`"


def test_a_missing_file(tmp_path):
    outcome = call("train", tmp_path / "nowhere.npy")
    assert outcome.code == 2
    assert "there is no such file" in outcome.error


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet", ".idx"])
def test_an_empty_file(tmp_path, suffix):
    path = tmp_path / f"empty{suffix}"
    path.touch()
    outcome = call("train", path)
    assert outcome.code == 2
    assert outcome.error == f"{path}: the file is empty (0 bytes). Write it again"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path, bad):
    array = np.zeros((20, 4))
    array[2, 1] = bad
    outcome = call("train", save(tmp_path / "x.npy", array))
    assert outcome.code == 2
    assert f"row 3, column 2 is {bad}, not a finite number. Fill it in, or remove the row" in outcome.error


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([[0, 1], [2, 1], [1, 0]], (), "the scale of values from 0 to 2 is not clear. Give --binarise THRESHOLD"),
        ([[-1, 1], [1, 1], [1, -1]], (), "is -1, neither 0 nor 1. These look like spins"),
        ([[0, 1], [2, 1], [1, 0]], ("--binarise", "never"), "row 2, column 1 is 2, neither 0 nor 1"),
        ([[0, 1], [2, 1], [1, 0]], ("--model", "potts", "--categories", 2), "is 2, not an integer from 0 to 1"),
        ([[0, 1], [-2, 1], [1, 0]], ("--model", "potts"), "is -2, not an integer from 0 up"),
        ([[0.5, 1], [2, 1], [1, 0]], ("--model", "potts-rbm"), "is 0.5, not an integer"),
    ],
)
def test_values_outside_the_space(tmp_path, values, options, message):
    outcome = call("train", save(tmp_path / "x.npy", values), *options, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert message in outcome.error
    assert not (tmp_path / "out").exists()


def test_one_datum(tmp_path):
    outcome = call("train", save(tmp_path / "x.npy", [[0, 1, 1]]))
    assert outcome.code == 2
    assert outcome.error.endswith("x.npy: holds one row, and a distribution needs at least 2. Give more data")


def test_a_part_without_data(tmp_path):
    outcome = call("train", save(tmp_path / "x.npy", [[0, 1], [1, 1], [1, 0]]))
    assert outcome.code == 2
    assert "leave none for the validation part" in outcome.error


def test_a_constant_column_is_refused_where_it_has_no_density(tmp_path):
    array = np.random.default_rng(0).normal(size=(30, 3))
    array[:, 1] = 2.5
    outcome = call("train", save(tmp_path / "x.npy", array), "--model", "gaussian-rbm")
    assert outcome.code == 2
    assert "column 2 is constant, always 2.5: its variance is 0" in outcome.error


def test_data_of_another_width(finished, tmp_path):
    outcome = call("evaluate", finished, save(tmp_path / "x.npy", np.ones((4, 5), int)))
    assert outcome.code == 2
    assert "the model expects 6 columns, but the data have 5" in outcome.error


def test_data_to_evaluate_that_are_no_bits(finished, tmp_path):
    outcome = call("evaluate", finished, save(tmp_path / "x.npy", np.full((4, 6), 2)))
    assert outcome.code == 2
    assert "row 1, column 1 is 2, neither 0 nor 1" in outcome.error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("frobnicate",), "No such command 'frobnicate'"),
        (("train", "digits", "--bogus", 3), "--bogus"),
        (("train", "digits", "--model", "foo"), "Invalid value for '--model': 'foo' is not one of 'rbm'"),
        (("train", "digits", "--hidden", "many"), "--hidden"),
        (("train", "digits", "--hidden", 0), "--hidden"),
        (("train", "digits", "--hidden", "8,,4"), "'8,,4' is not a number of units"),
        (("train", "digits", "--hidden", "8,4", "--model", "potts-rbm"), "has one layer of hidden units"),
        (("train", "digits", "--pretraining", 2), "is for deep machines only"),
        (("train", "digits", "--positive-phase", "chains"), "is for deep machines only"),
        (("train", "digits", "--seed", -1), "--seed"),
        (("train", "digits", "--epochs", 0), "--epochs: 0 is not above 0"),
        (("train", "digits", "--learning-rate", "nan"), "--learning-rate: nan is not above 0"),
        (("train", "digits", "--weight-decay", -1), "--weight-decay: -1 is below 0"),
        (("train", "digits", "--split", "0.5,0.4"), "--split: '0.5,0.4' are not three fractions"),
        (("train", "digits", "--split", "0.5,0.4,0.4"), "are not three fractions that add up to 1"),
        (("train", "digits", "--split", "0,0.5,0.5"), "the training part has a fraction of 0"),
        (("train", "digits", "--validation", 2), "--validation: 2 is not a fraction"),
        (("train", "digits", "--validation", 0.1, "--split", "0.7,0.1,0.2"), "say the same thing"),
        (("train", "digits", "--binarise", "half"), "--binarise: 'half' is not a rule"),
        (("train", "digits", "--model", "ising", "--hidden", 3), "the model ising has no hidden units"),
        (("train", "digits", "--categories", 3), "the model rbm is not over categories"),
        (("train", "digits", "--negative-phase", "exact"), "--negative-phase exact: "),
        (("train", "digits", "--negative-phase", "exact", "--chains", 3), "the exact negative phase has no chains"),
        (("train", "digits", "--negative-phase", "cd", "--chains", 3), "one chain from every example"),
        (("train", "digits", "--rungs", 5), "only tempered and trajectory chains have several temperatures"),
        (("train", "digits", "--negative-phase", "tempered", "--fast-rate", 0.1), "fast-weights only"),
        (("train", "digits", "--noise", 0.1), "--objective denoising or energy-discrepancy"),
        (("train", "digits", "--objective", "pseudo-likelihood", "--chains", 5), "has no phases and no chains"),
        (("train", "digits", "--objective", "pseudo-likelihood", "--hidden", "8,4"), "--objective pseudo-likelihood: "),
        (("train", "digits", "--objective", "sliced"), "--objective sliced: "),
        (("train", "digits", "--array", "x"), "the digits hold one array"),
        (("evaluate", "somewhere", "--confidence", 1), "--confidence: 1 is not between 0 and 1"),
        (("logz", "somewhere", "--route", "guess"), "--route"),
    ],
)
def test_options_that_cannot_serve(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = call(*args)
    assert outcome.code == 2
    assert message in outcome.error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [("evaluate",), ("logz",), ("sample",), ("train", "--resume")])
def test_a_folder_that_is_no_run(command, tmp_path):
    (tmp_path / "notes.txt").write_text("something else")
    outcome = call(*command, tmp_path)
    assert outcome.code == 2
    assert "is not a run folder, it holds no config.json" in outcome.error
    outcome = call(*command, tmp_path / "nowhere")
    assert outcome.code == 2
    assert "there is no such run folder" in outcome.error


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": {"seed": 1}}'])
def test_a_run_whose_config_is_broken(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    outcome = call("evaluate", tmp_path)
    assert outcome.code == 2
    assert "is not the configuration of a run" in outcome.error


def test_a_run_that_is_not_finished(finished, tmp_path):
    shutil.copy(finished / "config.json", tmp_path)
    outcome = call("evaluate", tmp_path)
    assert outcome.code == 2
    assert f"is not finished, it has no model.lnz. Go on with: lnz train --resume {tmp_path}" in outcome.error


def test_files_that_hold_no_energy(finished, bits, tmp_path):
    for path in (bits, finished / "checkpoint.safetensors"):
        outcome = call("logz", path)
        assert outcome.code == 2
        assert "holds no saved energy. Give a run folder, or a file that lnz.save wrote" in outcome.error
    cut = tmp_path / "cut.lnz"
    cut.write_bytes((finished / "model.lnz").read_bytes()[:-9])
    outcome = call("logz", cut)
    assert outcome.code == 2
    assert "is cut short" in outcome.error
    outcome = call("evaluate", finished / "model.lnz")
    assert outcome.code == 2
    assert "is a file, but evaluate needs a run folder" in outcome.error


def test_a_checkpoint_that_is_cut_short(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    checkpoint = run / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    outcome = call("train", "--resume", run)
    assert outcome.code == 2
    assert "checkpoint.safetensors is cut short" in outcome.error


def test_a_checkpoint_of_another_model(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["settings"]["hidden"] = 4
    (run / "config.json").write_text(json.dumps(config))
    outcome = call("train", "--resume", run)
    assert outcome.code == 2
    assert "checkpoint of another" in outcome.error


def test_data_that_have_changed_since(finished, bits, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    other = tmp_path / "votes.csv"
    other.write_text(bits.read_text().replace("1", "0", 3))
    config = json.loads((run / "config.json").read_text())
    config["settings"]["data"] = str(other)
    (run / "config.json").write_text(json.dumps(config))
    for command in (("evaluate", run, "--seed", 1), ("train", "--resume", run)):
        outcome = call(*command)
        assert outcome.code == 2
        assert "has changed since" in outcome.error


def test_resume_takes_no_other_setting(finished):
    outcome = call("train", "--resume", finished, "--hidden", 3)
    assert outcome.code == 2
    assert outcome.error == "--resume takes every setting from the run's config.json. Leave out --hidden"
    outcome = call("train", "digits", "--resume", finished)
    assert outcome.code == 2
    assert "Leave out DATA" in outcome.error


def test_a_run_that_exists_is_not_overwritten(finished, bits):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    outcome = call("train", bits, "--out", finished)
    assert outcome.code == 2
    assert f"{finished}: exists already. Go on with it by --resume {finished}, replace it by --force" in outcome.error
    # With --force too, nothing is lost where the new run is refused.
    outcome = call("train", bits, "--out", finished, "--force", "--binarise", "half", "--split", "1,0")
    assert outcome.code == 2
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_a_folder_of_other_files_is_never_overwritten(bits, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    outcome = call("train", bits, "--out", tmp_path, "--force")
    assert outcome.code == 2
    assert "holds no run, so it is never replaced" in outcome.error
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    outcome = call("train", bits, "--out", tmp_path / "thesis.tex", "--force")
    assert outcome.code == 2
    assert "is a file. Give another folder by --out" in outcome.error


def test_samples_do_not_overwrite(finished, tmp_path):
    path = tmp_path / "x.npy"
    path.write_text("mine")
    outcome = call("sample", finished, "--out", path)
    assert outcome.code == 2
    assert "exists already" in outcome.error
    assert path.read_text() == "mine"
    outcome = call("sample", finished, "--out", tmp_path / "x.doc")
    assert outcome.code == 2
    assert "cannot be written as '.doc'" in outcome.error
    outcome = call("sample", finished, "--out", tmp_path / "x.png")
    assert outcome.code == 2
    assert "a picture needs the height and width of one sample" in outcome.error
