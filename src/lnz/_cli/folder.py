"""The run folder: what a run leaves behind, written so that it is whole at any moment."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import lnz
from lnz._cli.errors import BadInput
from lnz._cli.output import json_line, strict
from lnz._cli.settings import Settings

_FILES = (
    "config.json",
    "checkpoint.safetensors",
    "checkpoint.safetensors.best",
    "metrics.jsonl",
    "looks.jsonl",
    "model.lnz",
    "tagger.safetensors",
    "segmenter.safetensors",
    "base.lnz",
    "results.json",
    "samples.npy",
    "samples.png",
    "filters.png",
    "curves.png",
    "moments.png",
    "segmentations.png",
    "losses.png",
    "report.html",
)


_OTHERS = {"tagger": "tag", "segmenter": "segment"}  # kinds of runs with commands of their own


class RunFolder:
    """Paths of a run, and its small files."""

    def __init__(self, path: Path):
        self.path = path

    def __getitem__(self, name: str) -> Path:
        return self.path / name

    @classmethod
    def create(cls, path: Path, *, force: bool, resumable: bool = True) -> RunFolder:
        """A new folder. An existing one is refused unless it is empty, or a run that `force` lets us replace."""
        folder = cls(path)
        folder.refuse_taken(force=force, resumable=resumable)
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name in _FILES:
                folder[name].unlink(missing_ok=True)
        except OSError as error:
            raise lnz.io.WriteError(
                f"{path}: could not be created ({error.strerror}). Give another folder by --out"
            ) from None
        return folder

    def refuse_taken(self, *, force: bool, resumable: bool = True) -> None:
        """Refuse a folder that exists, unless it is empty, or a run that is to be replaced."""
        path = self.path
        if path.exists() and not path.is_dir():
            raise BadInput(f"{path}: is a file. Give another folder by --out")
        if not path.is_dir() or not any(path.iterdir()):
            return
        if not self["config.json"].is_file():
            raise BadInput(f"{path}: is a folder that holds no run, so it is never replaced. Give another by --out")
        if not force:
            remedy = "replace it by --force, or give another folder by --out"
            again = f"Go on with it by --resume {path}, {remedy}" if resumable else remedy.capitalize()
            raise BadInput(f"{path}: exists already. {again}")

    def require_finished(self) -> None:
        """Refuse a run of `lnz train` that has no model yet."""
        self.config()
        if not self["model.lnz"].is_file():
            raise BadInput(
                f"{self.path}: the run is not finished, it has no model.lnz. Go on with: lnz train --resume {self.path}"
            )

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of a run that was begun. Raises BadInput where there is none."""
        if not path.is_dir():
            raise BadInput(f"{path}: there is no such run folder. Check the spelling and the folder you are in")
        if not (path / "config.json").is_file():
            raise BadInput(f"{path}: is not a run folder, it holds no config.json. Give one that `lnz train` made")
        return cls(path)

    def config(self) -> dict[str, Any]:
        """The run's configuration, checked."""
        try:
            found = json.loads(self["config.json"].read_text())
            if (kind := found.get("kind")) in _OTHERS:
                raise BadInput(
                    f"{self.path}: is a {kind}. Use lnz {_OTHERS[kind]} apply or lnz {_OTHERS[kind]} evaluate"
                )
            Settings.from_json(found["settings"])
            _ = found["data"]["coding"], found["data"]["sha256"]
        except BadInput:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise BadInput(
                f"{self['config.json']}: is not the configuration of a run ({type(error).__name__}: {error}). Train anew"
            ) from None
        return found

    def config_of(self, kind: str, *parts: str) -> dict[str, Any]:
        """The configuration of a run of `lnz tag` or `lnz segment`: of the kind "tagger" or "segmenter", with these parts."""
        try:
            found = json.loads(self["config.json"].read_text())
            made = found.get("kind")
            _ = [found[part] for part in parts if made == kind]
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise BadInput(f"{self['config.json']}: cannot be read ({type(error).__name__}). Train anew") from None
        if made != kind:
            by, wanted = (" ".join(["lnz", *filter(None, [_OTHERS.get(k)]), "train"]) for k in (made, kind))
            raise BadInput(f"{self.path}: is a run of `{by}`, not of `{wanted}`. Use the commands of its kind")
        return found

    def write_json(self, name: str, content: Any) -> None:
        """Write a small file, whole or not at all."""
        text = json.dumps(strict(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        lnz.io.write_atomic(self[name], lambda file: file.write(text.encode()))

    def write_lines(self, name: str, records: list[dict[str, Any]]) -> None:
        """Write one line of JSON a record, whole or not at all."""
        text = "".join(map(json_line, records))
        lnz.io.write_atomic(self[name], lambda file: file.write(text.encode()))

    def records(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The lines of a file of records; a last line that was cut short is left out."""
        if not self[name].is_file():
            return []
        found = []
        for line in self[name].read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        return found


def versions() -> dict[str, str]:
    """What a run was made with."""
    packages = ("jax", "jaxlib", "equinox", "optax", "numpy", "scikit-learn")
    return {
        "lnz": lnz.__version__,  # pyright: ignore[reportAttributeAccessIssue]
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "platform": platform.platform(),
    }
