"""Everything that can be refused without JAX is refused before JAX is imported, in every command."""

import dataclasses
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
import textwrap

import pytest
from cli_cases import ROOT

from lnz._cli.app import COMMANDS
from lnz._cli.errors import in_options
from lnz._cli.process import program
from lnz._cli.settings import Settings
from lnz.learning._monitor import ALARMS

# The settings of a run of version 0.1, before deep machines and objectives without log Z.
FIRST_RUN = {
    "data": "digits", "array": None, "binarise": "auto", "split": [0.7, 0.1, 0.2], "split_seed": 0, "model": "rbm", "hidden": 128,
    "categories": None, "negative_phase": "persistent", "sweeps": 5, "chains": 100, "rungs": 10, "fast_rate": 0.05, "monitor": True,
    "optimizer": "sgd", "learning_rate": 0.2, "schedule": "linear", "weight_decay": 0.001, "epochs": 1538.0, "batch_size": 100,
    "evaluate_every": 76.9, "seed": 0,
}  # fmt: skip

# One process refuses everything, and says of each command: the exit code, whether JAX is loaded, seconds of CPU, the message.
HARNESS = """
import contextlib, io, json, sys, time
before = time.process_time()
from lnz._cli import run
for args in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = run(args)
    print(json.dumps([code, "jax" in sys.modules, time.process_time() - before, said.getvalue()]))
    before = time.process_time()
"""

REFUSED = [
    ("train nowhere.csv", "nowhere.csv: there is no such file"),
    ("train notes.doc", "unknown suffix '.doc'"),
    ("train digits --out run", "run: exists already"),
    ("train digits --out other --force", "holds no run, so it is never replaced"),
    ("train digits --chains 3 --negative-phase exact", "has no chains"),
    ("train digits --lerning-rate 0.1", "No such option '--lerning-rate'. Did you mean --learning-rate?"),
    ("train digits more", "Got an unexpected argument 'more'"),
    ("train digits --epochs", "Argument --epochs: expected one argument"),
    ("train digits --epochs many", "--epochs: 'many' is not a number. Give another value"),
    ("train digits --seed -1", "--seed: -1 is not from 0 to 4,294,967,295"),
    ("train digits --chains 2.5", "--chains: '2.5' is not an integer"),
    ("segment trian", "No such command 'trian'. Did you mean train?"),
    ("segment apply run", "Missing IMAGES"),
    ("train --resume nowhere", "there is no such run folder"),
    ("train --resume run --seed 3", "Leave out --seed"),
    ("evaluate nowhere", "there is no such run folder"),
    ("evaluate begun", "is not finished, it has no model.lnz"),
    ("evaluate run nowhere.npy", "nowhere.npy: there is no such file"),
    ("evaluate notes.doc", "needs a run folder"),
    ("sample nowhere", "there is no such run folder"),
    ("sample run --out there.npy", "there.npy: exists already"),
    ("sample run --out x.doc", "cannot be written as '.doc'"),
    ("sample run --out nowhere/x.npy", "nowhere/x.npy: its folder does not exist"),
    ("sample notes.doc --out new.npy", "notes.doc: holds no saved energy"),
    ("logz notes.doc", "notes.doc: holds no saved energy"),
    ("logz run --plot nowhere/x.png", "nowhere/x.png: its folder does not exist"),
    (
        "sample run --out x.png",
        "x.png: a picture needs the height and width of one sample, and those of run do not form images",
    ),
    ("logz nowhere", "there is no such run folder"),
    ("logz run --plot x.pdf", "is not a .png file"),
    ("logz run --route smc --chains 3", "--temperatures and --chains are for"),
    ("logz run --path moments", "Name the route that anneals"),
    ("logz run --resume runs", "--resume keeps the runs that --within adds up"),
    ("logz run --map", "--map is for a graphical model"),
    ("logz nowhere.uai", "nowhere.uai: there is no such file"),
    ("logz x.uai --marginals there.npy", "there.npy: exists already"),
    ("logz x.uai --chains 3", "--chains is for a run or a saved energy"),
    ("audit nowhere.py:energy", "nowhere.py: there is no such file"),
    ("audit notes.doc:energy", "is not a Python file"),
    ("audit x.py:energy --report there.npy", "there.npy: exists already"),
    ("audit x.py:energy --samples nowhere.npy", "nowhere.npy: there is no such file"),
    ("evidence nowhere.py:model", "nowhere.py: there is no such file"),
    ("evidence notes.doc:model", "is not a Python file"),
    ("evidence model.py", "names no model. Write FILE.py:NAME"),
    ("evidence x.py:model", "x.py: has no 'model'. It has no functions"),
    ("evidence model.py:model --max-seconds 3", "Add --within NATS"),
    ("evidence model.py:model --within 0", "0 is not above 0"),
    ("evidence model.py:model", "model needs 'y'. Give them in --data FILE.json"),
    ("evidence model.py:model --data nowhere.json", "nowhere.json: there is no such file"),
    ("evidence model.py:model --data notes.doc", "is not valid JSON"),
    ("reference run --route exact", "which exact route applies depends on the model"),
    ("reference run --models torus", "no reference model 'torus': there are torus-4x4-hot"),
    ("tag train nowhere.txt --out new", "nowhere.txt: there is no such file"),
    ("tag train notes.doc --out run", "run: exists already"),
    ("tag apply run notes.doc", "is a run of `lnz train`, not of `lnz tag train`"),
    ("tag apply tagger notes.doc --out there.npy", "there.npy: exists already"),
    ("tag apply tagger nowhere.txt", "nowhere.txt: there is no such file"),
    ("tag evaluate nowhere notes.doc", "there is no such run folder"),
    ("segment train other", "name the data and a run folder"),
    ("segment train nowhere --out new", "nowhere: there is no such file"),
    ("segment train other --out run", "run: exists already"),
    ("segment train other --out new --range 0.3 --scales 1,x", "are not numbers"),
    ("segment train --resume run --range 0.3", "Leave out --range"),
    ("segment apply run other --out new", "is a run of `lnz train`, not of `lnz segment train`"),
    ("segment apply segmenter other --out labelled", "notes.png: exists already. Choose another folder"),
    ("segment evaluate nowhere other", "there is no such run folder"),
]


def process(code, folder, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals")
    for name in ("notes.doc", "there.npy", "x.uai", "x.py", "other/notes.txt", "labelled/masks/notes.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("something")
    (folder / "model.py").write_text("def model(y):\n    pass\n")
    config = {"settings": FIRST_RUN, "data": {"coding": {}, "sha256": ""}}
    for name, files, about in (
        ("begun", (), config),
        ("run", ("model.lnz", "base.lnz"), config),
        ("tagger", ("tagger.safetensors",), {"kind": "tagger"}),
        ("segmenter", ("segmenter.safetensors",), {"kind": "segmenter", "settings": {}, "coding": {}, "data": ""}),
    ):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(about))
        for file in files:
            (folder / name / file).touch()
    done = process(HARNESS, folder, input=json.dumps([command.split() for command, _ in REFUSED]))
    assert done.returncode == 0, done.stderr
    return dict(zip(REFUSED, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("case", REFUSED, ids=[command for command, _ in REFUSED])
def test_refused_before_jax_is_imported(told, case):
    code, has_jax, seconds, said = told[case]
    assert code == 2
    assert said.startswith("lnz: error: ")
    assert said.count("\n") == 1
    assert case[1] in said
    assert not has_jax
    assert seconds < 0.5


def test_every_command_is_refused_something():
    assert len(COMMANDS) == 14
    untested = {name for name in COMMANDS if not any(command.startswith(name + " ") for command, _ in REFUSED)}
    assert untested == {"reference list"}  # it takes nothing


def test_hints_can_be_pasted(monkeypatch):
    for name, wanted in ((None, "lnz"), ("UV", "uv run lnz"), ("UV_RUN_RECURSION_DEPTH", "uv run lnz")):
        for other in ("UV", "UV_RUN_RECURSION_DEPTH"):
            monkeypatch.delenv(other, raising=False)
        if name is not None:
            monkeypatch.setenv(name, "1")
        assert program() == wanted


def test_what_the_library_advises_is_said_in_options():
    for kind in ALARMS:
        assert not re.search(r"[a-z][A-Z]|the learning rate", in_options(kind.remedy).replace("UnadjustedLangevin", ""))


def test_every_command_has_its_function():
    for options, work in COMMANDS.values():
        assert callable(pkgutil.resolve_name(work))
        assert inspect.getdoc(pkgutil.resolve_name(options))


def test_runs_of_the_first_version_can_be_read():
    settings = Settings.from_json(json.loads(json.dumps(FIRST_RUN)))
    assert dataclasses.asdict(settings).items() >= (FIRST_RUN | {"split": (0.7, 0.1, 0.2)}).items()
    assert (settings.positive_phase, settings.pretraining) == ("mean-field", 0.0)
    assert (settings.objective, settings.noise) == ("likelihood", 0.0)
    assert Settings.from_json(FIRST_RUN | {"hidden": [8, 4]}).layers == (8, 4)
    with pytest.raises(KeyError):
        Settings.from_json({"seed": 1})


def test_without_its_extra_the_command_says_what_to_install(tmp_path):
    code = """
        import sys
        sys.modules["rich"] = None
        from lnz._cli import main
        main(["train", "digits"])
    """
    done = process(code, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lnz: error: the command line needs packages that are not installed: rich.")
    assert done.stderr.endswith("pip install 'lnz[cli]'\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("package", "command", "extra"),
    [
        ("pyarrow", "train x.parquet", "data"),
        ("matplotlib", "train digits", "cli"),
        ("PIL", "train pictures", "cli"),
        ("PIL", "sample run --out x.png", "cli"),
        ("matplotlib", "logz run --plot x.png", "cli"),
        ("matplotlib", "audit x.py:energy --report x.html", "cli"),
    ],
)
def test_a_missing_package_is_refused_before_jax_is_imported(tmp_path, package, command, extra):
    (tmp_path / "x.parquet").touch()
    (tmp_path / "x.py").touch()
    (tmp_path / "pictures").mkdir()
    code = f"""
        import sys
        sys.modules[{package!r}] = None
        from lnz._cli import run
        assert run({command.split()}) == 2
        assert "jax" not in sys.modules
    """
    done = process(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"packages that are not installed: {package}. Install them by: pip install 'lnz[{extra}]'" in done.stderr


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["tag"]])
def test_help_is_quick_and_imports_no_array_package(tmp_path, args):
    code = f"""
        import sys, time
        from lnz._cli import run
        assert run({args}) == 0
        print(time.process_time(), sorted({{"jax", "numpy", "rich"}} & set(sys.modules)))
    """
    seconds, loaded = process(code, tmp_path).stdout.splitlines()[-1].split(maxsplit=1)
    assert loaded == "[]"
    assert float(seconds) < 0.3  # 0.07 s where nothing else runs
