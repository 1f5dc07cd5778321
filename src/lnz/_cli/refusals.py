"""Files that are refused before anything heavy is imported: nothing here needs more than the standard library."""

from __future__ import annotations

from pathlib import Path

from lnz._cli.errors import BadInput, refuse_missing

_READ = (".npy", ".npz", ".csv", ".tsv", ".parquet", ".idx", "-ubyte", ".gz")


def existing(path: Path) -> None:
    """Refuse an input that does not exist."""
    if not path.exists():
        raise BadInput(f"{path}: there is no such file. Check the spelling and the folder you are in")


def data_file(path: Path) -> None:
    """Refuse data that do not exist, or whose format is unknown; folders hold images."""
    existing(path)
    if path.is_file() and not path.name.lower().endswith(_READ):
        raise BadInput(
            f"{path}: unknown suffix {path.suffix!r}. Known: .npy, .npz, .csv, .tsv, .parquet, MNIST's idx (*-ubyte or .idx, also .gz), "
            "or a folder of images"
        )
    if path.suffix.lower() == ".parquet":
        refuse_missing(("pyarrow",), "Parquet files", extra="data")
    if path.is_dir():
        refuse_missing(("PIL",), "images")


def new_file(path: Path, *, force: bool) -> None:
    """Refuse an output that exists, unless it is to be replaced."""
    if path.exists() and not force:
        raise BadInput(f"{path}: exists already. Choose another name, or replace it by --force")
    if not path.parent.is_dir():
        raise BadInput(f"{path}: its folder does not exist. Create the folder first")


def model_file(path: Path) -> None:
    """Refuse a file that holds no saved energy, as far as its first bytes tell: a length, and the JSON that is so long."""
    with open(path, "rb") as file:
        start = file.read(9)
    if path.suffix != ".lnz" and start[8:] != b"{":
        raise BadInput(f"{path}: holds no saved energy. Give a run folder, or a file that lnz.save wrote")
