"""Compiled programs are kept between processes, and nothing that is wrong with them reaches the user."""

import collections
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from cli_cases import ROOT

import lnz
from lnz._core import compilation_cache

COUNTED = """
import collections, json, sys, warnings
warnings.simplefilter("error", UserWarning)
from jax import monitoring
counts = collections.Counter()
monitoring.register_event_listener(lambda name, **_: counts.update([name.split("/")[-1]]))
from lnz._cli import run
code = run(sys.argv[1:])
print(json.dumps([code, counts]))
"""


def counted(cache, *args):
    """What a command in a process of its own says, and how its programs were found."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", COUNTED, *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *said, last = done.stdout.splitlines()
    code, counts = json.loads(last)
    assert code == 0
    return said, collections.Counter(counts), done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "ising.lnz"
    half = np.triu(np.random.default_rng(0).normal(size=(6, 6)), 1)
    lnz.save(path, lnz.Ising(half + half.T, np.zeros(6)))
    return path


def test_a_second_process_compiles_nothing(model, tmp_path):
    first, cold, _ = counted(tmp_path, "logz", model)
    again, warm, _ = counted(tmp_path, "logz", model)
    assert again == first
    assert cold["cache_misses"] > 3
    assert warm["cache_misses"] == 0
    assert warm["cache_hits"] == warm["compile_requests_use_cache"]


def test_damaged_entries_are_compiled_again_without_a_word(model, tmp_path):
    first, cold, _ = counted(tmp_path, "logz", model)
    entries = [path for path in tmp_path.rglob("*-cache") if path.is_file()]
    assert len(entries) > 3
    for i, path in enumerate(entries):
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes([b"", content[:middle], content[:middle] + b"\xff" * 8 + content[middle + 8 :]][i % 3])
    again, warm, said = counted(tmp_path, "logz", model)
    assert again == first
    assert warm["compile_requests_use_cache"] == cold["compile_requests_use_cache"]
    assert "cache" not in said


def test_a_folder_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").write_text("no folder")
    first, cold, said = counted(tmp_path / "file", "logz", model)
    assert first
    assert "cache" not in said
    assert not cold["cache_hits"]


def test_the_oldest_entries_go_where_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "_MAX_BYTES", 250)
    for i in range(5):
        (tmp_path / f"{i}").write_bytes(b"x" * 100)
        os.utime(tmp_path / f"{i}", (1000 + i, 1000 + i))
    compilation_cache._remove_oldest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def test_a_cache_that_is_set_already_stays(tmp_path):
    assert jax.config.jax_compilation_cache_dir  # by the suite
    assert lnz.cache(tmp_path) == lnz.cache()
    assert not list(tmp_path.iterdir())


def test_it_may_be_called_after_something_was_compiled(tmp_path):
    code = f"""
import jax, lnz
jax.config.update("jax_compilation_cache_dir", None)
jax.jit(lambda x: x + 1)(1.0)
folder = lnz.cache({str(tmp_path)!r})
jax.jit(lambda x: x + 2)(1.0)
print(len(list(folder.iterdir())))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    environment["PYTHONPATH"] = str(ROOT / "src")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0
