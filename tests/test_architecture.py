"""The house as docs/architecture.md draws it: no room imports one above it, and `import lnz` waits for nothing heavy."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import lnz

SOURCE = Path(lnz.__file__).parent

# From the ground up: a room may import only the rooms before it, and itself.
HOUSE = [
    "_core",
    "capabilities",
    "_graphs",
    "_models",
    "io",
    "kernels",
    "routes",
    "_choose",
    "_partition",
    "reference",
    "diagnostics",
    "crf",
    "learning",
    "testing",
    "interop",
    "_evidence",
    "apps",
    "torch",
    "sklearn",
    "report",
    "_cli",
    "_moved",
]

# Calls that look up: a default that is found when it is asked for, and the list of routes.
LATE: set[tuple[str, str]] = set()

HEAVY = {
    "PIL",
    "blackjax",
    "cotengrust",
    "matplotlib",
    "networkx",
    "optax",
    "pandas",
    "pyarrow",
    "safetensors",
    "scipy",
    "sklearn",
}


class Import(NamedTuple):
    name: str  # in full, such as lnz._core.spaces.Spin
    late: bool  # inside a function
    line: int


def imports(text: str, module: str, *, is_package: bool = False) -> list[Import]:
    """What a module imports; imports for type checkers alone are left out."""
    found: list[Import] = []
    package = module.split(".") if is_package else module.split(".")[:-1]

    def visit(node: ast.AST, late: bool) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, late, node.lineno) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found.extend(Import(f"{base}.{alias.name}", late, node.lineno) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    visit(ast.parse(text), False)
    return found


def trouble(text: str, module: str, *, is_package: bool = False) -> list[str]:
    """The imports of a module that the house forbids."""
    room = module.split(".")[1]
    wrong = []
    for name, late, line in imports(text, module, is_package=is_package):
        parts = name.split(".")
        if parts[0] in HEAVY and not late and parts[0] != room:
            wrong.append(f"{module}:{line} imports {parts[0]} as it loads: move that into the function that needs it")
        if name.startswith("scipy.stats") and room != "testing":
            wrong.append(f"{module}:{line} imports scipy.stats, which takes a second: scipy.special has the quantiles")
        if parts[0] != "lnz" or len(parts) == 1 or parts[1] not in HOUSE:
            continue  # a name of `lnz` itself is loaded when it is used
        if HOUSE.index(parts[1]) > HOUSE.index(room) and not (late and (room, parts[1]) in LATE):
            wrong.append(f"{module}:{line} imports {name}, which stands above {room}")
    return wrong


def modules() -> list[tuple[str, Path]]:
    paths = [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]
    return [(".".join(("lnz", *path.relative_to(SOURCE).with_suffix("").parts)), path) for path in paths]


@pytest.mark.parametrize(("name", "path"), [pytest.param(*found, id=found[0]) for found in modules()])
def test_no_import_goes_up(name, path):
    is_package = path.name == "__init__.py"
    module = name.removesuffix(".__init__")
    assert module.split(".")[1] in HOUSE, "a new room: give it a place in HOUSE and in docs/architecture.md"
    assert trouble(path.read_text(), module, is_package=is_package) == []


@pytest.mark.parametrize(
    ("text", "module", "forbidden"),
    [
        ("from lnz.learning._fit import fit", "lnz._core.energy", True),
        ("import lnz._cli.app", "lnz.learning._fit", True),
        ("def f():\n    from lnz.routes._exact.enumeration import Enumeration", "lnz.kernels._kernels", True),
        ("def f():\n    from lnz.routes._exact.enumeration import Enumeration", "lnz._core.route", True),
        ("from lnz.routes._exact.enumeration import Enumeration", "lnz._core.route", True),
        ("from ..report import page", "lnz.learning._fit", True),
        ("from .checkpoint import save_tree", "lnz.io._sample_files", False),
        ("import scipy.linalg", "lnz.routes._exact.quadrature", True),
        ("def f():\n    import scipy.linalg", "lnz.routes._exact.quadrature", False),
        ("def f():\n    from scipy import stats", "lnz._core.convergence", True),
        ("if TYPE_CHECKING:\n    import optax", "lnz.learning._fit", False),
    ],
)
def test_a_forbidden_import_is_seen(text, module, forbidden):
    assert bool(trouble(text, module)) == forbidden


def test_the_page_draws_every_room():
    page = (Path(__file__).parents[1] / "docs/architecture.md").read_text()
    drawing = page.split("## Rooms and arrows")[1].split("```")[1]
    assert set(HOUSE) <= set(re.findall(r"\w+", drawing))


def test_import_lnz_loads_no_jax():
    code = (
        "import sys, lnz; lnz.__version__; print(*sorted({'jax', 'equinox', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", lnz.__all__)
def test_every_public_name_loads(name):
    assert getattr(lnz, name) is not None
