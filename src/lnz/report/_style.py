"""How the pictures look: one quiet style, drawn without a screen, written whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from lnz._core.packages import package
from lnz.io import write_atomic

INK, QUIET, GRID = "#22303c", "#7a8794", "#e6eaee"
BLUE, ORANGE, GREEN = "#2f6f9f", "#c9752d", "#4c8c5a"
_STYLE: Any = {
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "figure.facecolor": "white",
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "image.interpolation": "nearest",
}


def matplotlib(module: str = "") -> Any:
    """matplotlib or one of its modules, which the extra `cli` brings."""
    return package(f"matplotlib.{module}" if module else "matplotlib", "Drawing a picture")


class Canvas:
    """A matplotlib figure that is written to `path` at the end of a `with` block, without touching pyplot's global state."""

    def __init__(self, path: Path, *, width: float, height: float):
        self._path = path
        self._context: Any = matplotlib().rc_context(_STYLE)
        self._context.__enter__()
        self.figure = matplotlib("figure").Figure(figsize=(width, height), layout="constrained")
        matplotlib("backends.backend_agg").FigureCanvasAgg(self.figure)

    def __enter__(self) -> Any:
        return self.figure

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                buffer = io.BytesIO()
                self.figure.savefig(buffer, format="png")
                write_atomic(self._path, lambda file: file.write(buffer.getbuffer()))
        finally:
            self._context.__exit__(None, None, None)
