"""What the core needs is installed with it; what an extra brings is missed in one line, and nothing else breaks."""

import os
import resource
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import lnz
from lnz._cli.folder import versions

OPTIONAL = ("PIL", "dimod", "flax", "matplotlib", "pandas", "pgmpy", "pyarrow", "rich", "sklearn", "torch")

_HIDDEN = f"""
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def run(code: str, folder) -> subprocess.CompletedProcess[str]:
    """A process in which the packages of no extra can be found."""
    return subprocess.run(
        [sys.executable, "-c", _HIDDEN + textwrap.dedent(code)], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_core_works_without_any_extra(tmp_path):
    done = run(
        """
        import jax, lnz, numpy as np, optax
        images = lnz.io.binarise(lnz.io.digits().rows)
        model = lnz.RBM.from_data(images, hidden=2, key=jax.random.key(0))
        options = dict(negative_phase=lnz.learning.ContrastiveDivergence(), optimizer=optax.adam(1e-3), epochs=0.1)
        fitted = lnz.fit(model, images, key=jax.random.key(1), **options)
        print(np.isfinite(float(lnz.log_partition(fitted.energy).value)))
        lnz.save("model.lnz", fitted.energy)
        assert type(lnz.load("model.lnz")) is lnz.RBM
        assert lnz.marginals(lnz.Ising.lattice((3, 3), 0.4, 0.1, periodic=False)).shape == (3, 3, 2)
        """,
        tmp_path,
    )
    assert done.stdout.split() == ["True"], done.stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("lnz.io.load('x.parquet')", "Reading Parquet files needs the package pyarrow, which is not installed. "
         "Install it: pip install 'lnz[data]'"),
        ("lnz.io.load('pictures')", "Reading images needs the package pillow, which is not installed. "
         "Install it: pip install 'lnz[cli]'"),
        ("lnz.io.save_samples('x.png', np.zeros((4, 9), np.uint8), (3, 3))", "Writing images needs the package pillow"),
        ("lnz.report.lattice('x.png', np.zeros((2, 2)), [(0, 1)], np.zeros(1))", "Drawing a picture needs the package matplotlib"),
        ("lnz.interop.to_bqm(lnz.Ising(np.zeros((2, 2))))", "to_bqm needs the package dimod"),
    ],
)  # fmt: skip
def test_a_missing_extra_is_named(tmp_path, code, words):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"PNG")
    done = run(f"import lnz, numpy as np\n{code}", tmp_path)
    assert words in done.stderr.splitlines()[-1], done.stderr


def test_import_is_quick():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import lnz"], check=True, env=os.environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


def test_one_version():
    citation = (Path(__file__).parents[1] / "CITATION.cff").read_text()
    assert f"\nversion: {lnz.__version__}\n" in citation


def test_a_run_names_versions_of_what_is_always_installed():
    """scikit-learn stood in this list when it was no longer installed, and `lnz train` failed in a fresh environment."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    needed = {line.split(">=")[0] for line in tomllib.loads(text)["project"]["dependencies"]}
    assert set(versions()) <= needed | {"lnz", "python", "jaxlib", "platform"}
