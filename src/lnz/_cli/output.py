"""What the commands print: tables for people, strict JSON for programs."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
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
    """Lines and tables on stdout; tables are 100 columns wide where stdout is not a terminal."""
    for part in parts:
        if isinstance(part, str):
            print(part)
        else:
            _tables().print(part)


def _tables() -> Any:
    from rich.console import Console  # only for tables: small sums take less time than this import

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=100)


def fact_table(rows: list[tuple[str, str]]) -> str:
    """Names and facts in two columns."""
    names = max(len(name) for name, _ in rows) + 1
    width = max(40, shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100)
    dim, plain = ("\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "")
    lines = []
    for name, fact in rows:
        first, *others = textwrap.wrap(fact, width - names - 1, break_on_hyphens=False) or [""]
        lines.append(f"{dim}{name:{names}}{plain} {first}".rstrip())
        lines += [" " * (names + 1) + line for line in others]
    return "\n".join(lines)


def facts(found: dict[str, Any], rows: list[tuple[str, str]], *, as_json: bool) -> None:
    """Facts in two columns, or as JSON."""
    if as_json:
        emit_json(found)
    else:
        emit(fact_table(rows))
