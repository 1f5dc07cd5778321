"""Every example runs: the Python of README.md and docs/*.md beside the output printed there, and every docstring's.

They run as a reader would run them, in a process of their own with JAX's default settings. The Python blocks of a file share one namespace. A
`text` block right after one is its output: words must agree, whole numbers too, and other numbers to one unit of their last printed digit. An HTML
comment `<!-- within 10 % -->` between the two allows every number that much more, where samples differ between machines.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import importlib.util
import io
import json
import os
import pkgutil
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import pytest

import lnz

ROOT = Path(__file__).parents[1]
DOCUMENTS = [path for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))) if "```python" in path.read_text()]
MODULES = [
    "lnz",
    *sorted(m.name for m in pkgutil.walk_packages(lnz.__path__, "lnz.") if not m.name.endswith("__main__")),
]
# Rooms for users of other packages, and their guides, run where those packages are installed: `.ci/matrix faces`.
NEEDED = {
    "lnz.sklearn": "sklearn",
    "guide-evidence-of-a-bayesian-model.md": "numpyro",
    "guide-scikit-learn.md": "sklearn",
    "lnz.torch": "torch",
    "guide-pytorch.md": "torch",
}

_BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```$(?:\s*<!-- within (?P<percent>[\d.]+) % -->)?(?:\s*^```text\n(?P<output>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


class Example(NamedTuple):
    line: int
    code: str
    output: str | None
    tolerance: float


def examples(text: str) -> list[Example]:
    return [
        Example(text.count("\n", 0, m.start()) + 2, m["code"], m["output"], float(m["percent"] or 0) / 100)
        for m in _BLOCK.finditer(text)
    ]


def difference(printed: str, expected: str, tolerance: float) -> str | None:
    """What is wrong with the printed text, or None."""
    if _NUMBER.sub("#", printed).split() != _NUMBER.sub("#", expected).split():
        return "the words differ"
    for found, wanted in zip(_NUMBER.findall(printed), _NUMBER.findall(expected), strict=True):
        a, b = (float(number.replace(",", "")) for number in (found, wanted))
        if abs(a - b) > max(1.001 * _last_digit(wanted), tolerance * abs(b)):
            return f"{found} is not {wanted}"
    return None


def _last_digit(number: str) -> float:
    """The worth of one unit of the last printed digit; 0 for a whole number."""
    mantissa, _, exponent = number.partition("e")
    decimals = len(mantissa.partition(".")[2])
    return 0.0 if decimals == 0 and not exponent else 10.0 ** (int(exponent or 0) - decimals)


def lacks(name: str) -> str | None:
    """The package that a module or a document needs and that is missing, or None."""
    needed = (package for what, package in NEEDED.items() if name == what or name.startswith(f"{what}."))
    return next((package for package in needed if importlib.util.find_spec(package) is None), None)


def skip_where_lacking(name: str) -> None:
    if (package := lacks(name)) is not None:
        pytest.skip(f"{package} is not installed")


def in_own_process(*arguments: str, folder: Path) -> dict[str, str]:
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_"))}
    # JAX's own settings, but for the quick compiler of the suite: the examples spend their time in compilation.
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    settings |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
    settings |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, __file__, *arguments], cwd=folder, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def troubles_of(path: Path, folder: Path) -> list[str]:
    """How the examples of a document differ from the output printed there."""
    printed = in_own_process("document", str(path), folder=folder)
    troubles = []
    for example in examples(path.read_text()):
        output = printed.get(str(example.line), "(never reached)")
        trouble = difference(output, example.output or "", example.tolerance)
        if trouble:
            troubles.append(
                f"{path.name}:{example.line}: {trouble}\n--- expected\n{example.output}\n--- printed\n{output}"
            )
    return troubles


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in DOCUMENTS])
def test_document(path, tmp_path):
    skip_where_lacking(path.name)
    troubles = troubles_of(path, tmp_path)
    assert not troubles, "\n".join(troubles)


@pytest.fixture(scope="module")
def doctests(tmp_path_factory):
    names = [name for name in MODULES if lacks(name) is None]
    return in_own_process("docstrings", *names, folder=tmp_path_factory.mktemp("docstrings"))


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name, doctests):
    skip_where_lacking(name)
    assert doctests[name] == ""


@pytest.mark.parametrize(
    ("printed", "expected", "tolerance", "wrong"),
    [
        ("log Z = 2.2355 (exact)", "log Z = 2.2354 (exact)", 0, False),
        ("log Z = 2.2357 (exact)", "log Z = 2.2354 (exact)", 0, True),
        ("8 states", "9 states", 0, True),
        ("1,024 states", "1,024   states", 0, False),
        ("rounding 3e-15", "rounding 4e-15", 0, False),
        ("-3.1", "3.1", 0, True),
        ("-3.1", "-3.3", 0.1, False),
        ("by enumeration", "by quadrature", 0.1, True),
        ("1.0 2.0", "1.0", 0, True),
    ],
)
def test_the_comparison_can_fail(printed, expected, tolerance, wrong):
    assert (difference(printed, expected, tolerance) is not None) == wrong


def run_document(path: str) -> dict[str, str]:
    """Run the examples of a file in one namespace, up to the first that raises: the line of each to what it printed."""
    namespace = {"__name__": "__main__"}
    printed = {}
    for example in examples(Path(path).read_text()):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            try:
                exec(compile(example.code, f"{path}, example at line {example.line}", "exec"), namespace)
            except Exception:
                printed[str(example.line)] = out.getvalue() + traceback.format_exc()
                break
        printed[str(example.line)] = out.getvalue()
    return printed


def run_docstrings(names: list[str]) -> dict[str, str]:
    """Run the docstring examples of modules: the name of each to its failures in words, empty where all is well."""
    troubles = {}
    for name in names:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            doctest.testmod(importlib.import_module(name))
        troubles[name] = out.getvalue()
    return troubles


if __name__ == "__main__":
    what, *names = sys.argv[1:]
    json.dump(run_document(names[0]) if what == "document" else run_docstrings(names), sys.stdout)
