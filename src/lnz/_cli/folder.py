"""The run folder: what a run leaves behind, written so that it is whole at any moment."""

from __future__ import annotations

import contextlib
import datetime
import json
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import lnz
from lnz._cli.errors import BadInput
from lnz._cli.output import json_line, note, strict
from lnz._cli.process import program
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
    "diverged.json",
    "samples.npy",
    "samples.png",
    "filters.png",
    "curves.png",
    "moments.png",
    "segmentations.png",
    "losses.png",
    "report.html",
)


_LEFT = re.compile(r"\.config\.json\..*\.tmp")  # by a kill at the very start
_OTHERS = {"tagger": "tag", "segmenter": "segment"}  # kinds of runs with commands of their own


class RunFolder:
    """Paths of a run, and its small files."""

    def __init__(self, path: Path):
        self.path = path

    def __getitem__(self, name: str) -> Path:
        return self.path / name

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return self["results.json"].is_file()

    @property
    def again(self) -> str:
        """The command that goes on with this run."""
        kind = json.loads(self["config.json"].read_text()).get("kind")
        return " ".join([program(), *filter(None, [_OTHERS.get(kind or "")]), "train --resume", str(self.path)])

    @classmethod
    def begin(cls, path: Path, config: dict[str, Any], *, force: bool, resume_or_start: bool) -> RunFolder:
        """A new folder with its `config.json`, or with `resume_or_start` that of the same run begun earlier.

        Raises BadInput for an existing folder unless it is empty, or a run that `force` lets us replace; and for a run begun otherwise.
        """
        folder = cls(path)
        folder.refuse_taken(force=force, resume_or_start=resume_or_start)
        if resume_or_start and folder["config.json"].is_file() and not folder["diverged.json"].is_file():
            begun = folder.config_of(config.get("kind"), *config)
            for name, now in json.loads(json.dumps(strict(config))).items():
                parts = now.items() if isinstance(now, dict) else [(name, now)]
                then = begun[name] if isinstance(now, dict) else begun
                for part, value in parts:
                    if then.get(part) != value:
                        raise BadInput(
                            f"{path}: was begun with other settings: {part} is {then.get(part)}, and here it is {value}. Give another folder "
                            f"by --out, or go on with it by {folder.again}"
                        )
            return folder
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name in _FILES:
                folder[name].unlink(missing_ok=True)
        except OSError as error:
            raise lnz.io.WriteError(
                f"{path}: could not be created ({error.strerror}). Give another folder by --out"
            ) from None
        begun = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        about = {"command": ["lnz", *sys.argv[1:]], "begun": begun, "versions": versions()}
        folder.write_json("config.json", config | about)
        return folder

    def refuse_taken(self, *, force: bool, resume_or_start: bool) -> None:
        """Refuse a folder that exists, unless it is empty, or a run that is to be replaced or to be gone on with."""
        path = self.path
        if force and resume_or_start:
            raise BadInput("--force replaces a run, and --resume-or-start goes on with it. Give one of them")
        if path.exists() and not path.is_dir():
            raise BadInput(f"{path}: is a file. Give another folder by --out")
        if not path.is_dir() or not any(not _LEFT.fullmatch(found.name) for found in path.iterdir()):
            return
        if not self["config.json"].is_file():
            raise BadInput(f"{path}: is a folder that holds no run, so it is never replaced. Give another by --out")
        if not force and not resume_or_start and not self["diverged.json"].is_file():
            raise BadInput(
                f"{path}: exists already. Go on with it by --resume {path}, replace it by --force, or give another folder by --out"
            )

    def require_finished(self) -> None:
        """Refuse a run of `lnz train` that has no model yet."""
        self.config()
        if self["diverged.json"].is_file():
            raise BadInput(
                f"{self.path}: its learning diverged, it has no model.lnz. Train anew with a lower --learning-rate"
            )
        if not self["model.lnz"].is_file():
            raise BadInput(f"{self.path}: the run is not finished, it has no model.lnz. Go on with: {self.again}")

    @contextlib.contextmanager
    def divergence(self) -> Iterator[None]:
        """Where learning diverges, mark the run: it holds nothing to keep, so that the next one may take its place."""
        try:
            yield
        except Exception as error:
            if type(error).__name__ == "Diverged":  # by name: no import of JAX
                self.write_json("diverged.json", {"error": str(error)})
            raise

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

    def config_of(self, kind: str | None, *parts: str) -> dict[str, Any]:
        """The configuration of a run of the kind "tagger" or "segmenter", or of `lnz train` (None), with these parts."""
        try:
            found = json.loads(self["config.json"].read_text())
            made = found.get("kind")
            _ = [found[part] for part in parts if made == kind]
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise BadInput(f"{self['config.json']}: cannot be read ({type(error).__name__}). Train anew") from None
        if made != kind:
            by, wanted = (" ".join(["lnz", *filter(None, [_OTHERS.get(k or "")]), "train"]) for k in (made, kind))
            raise BadInput(f"{self.path}: is a run of `{by}`, not of `{wanted}`. Use the commands of its kind")
        return found

    def resumable(self, kind: str, *parts: str) -> None:
        """Refuse a run of another kind, or one that is finished."""
        self.config_of(kind, *parts)
        if self.finished:
            raise BadInput(f"{self.path}: is finished. Evaluate it, or train anew")

    def write_json(self, name: str, content: Any) -> None:
        """Write a small file, whole or not at all."""
        text = json.dumps(strict(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        lnz.io.write_atomic(self[name], lambda file: file.write(text.encode()))

    def write_lines(self, name: str, records: list[dict[str, Any]]) -> None:
        """Write one line of JSON a record, whole or not at all."""
        text = "".join(map(json_line, records))
        lnz.io.write_atomic(self[name], lambda file: file.write(text.encode()))

    def results(self) -> dict[str, Any] | None:
        """The results of a run that is finished, which is said; None for another."""
        if not self.finished:
            return None
        note(f"{self.path} is finished already")
        return json.loads(self["results.json"].read_text())

    def note_versions(self) -> None:
        """Say so where the run was begun with other versions."""
        then, now = json.loads(self["config.json"].read_text()).get("versions", {}), versions()
        for name in ("lnz", "jax", "numpy"):
            if then.get(name) != now[name]:
                note(
                    f"{self.path} was begun with {name} {then.get(name)}, and this is {now[name]}: the last digits may differ"
                )

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


def held_out(parts: dict[str, Any]) -> str:
    """The part that the run reports first: test data, else validation data, else training data."""
    return next(name for name in ("test", "validation", "train") if name in parts)


def versions() -> dict[str, str]:
    """What a run was made with."""
    packages = ("jax", "jaxlib", "equinox", "optax", "numpy", "scipy")
    return {
        "lnz": lnz.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "platform": platform.platform(),
    }
