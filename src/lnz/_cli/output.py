"""What the commands print: tables for people, strict JSON for programs."""

from __future__ import annotations

import json
import math
import sys
from typing import Any


def strict(content: Any) -> Any:
    """Plain values that JSON has: NumPy's and JAX's numbers as Python's, NaN and infinities as null."""
    if isinstance(content, dict):
        return {str(name): strict(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [strict(value) for value in content]
    if content is None or isinstance(content, str | bool | int):
        return content
    number = float(content)
    return number if math.isfinite(number) else None


def json_line(record: dict[str, Any]) -> str:
    """One line of a file of records."""
    return json.dumps(strict(record), ensure_ascii=False, allow_nan=False) + "\n"


def note(text: str) -> None:
    """A remark on stderr."""
    print("lnz: note: " + " ".join(text.split()), file=sys.stderr, flush=True)


def emit_json(content: Any) -> None:
    """One JSON object on stdout; NaN and infinities are null."""
    print(json.dumps(strict(content), ensure_ascii=False, allow_nan=False))


def emit(*parts: Any) -> None:
    """Tables and lines on stdout, 100 columns wide where stdout is not a terminal."""
    from rich.console import Console

    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=100)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def fact_table(rows: list[tuple[str, str]]) -> Any:
    """Names and facts in two columns."""
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in rows:
        table.add_row(name, fact)
    return table


def facts(found: dict[str, Any], rows: list[tuple[str, str]], *, as_json: bool) -> None:
    """Facts in two columns, or as JSON."""
    if as_json:
        emit_json(found)
    else:
        emit(fact_table(rows))
