"""Commands from frozen dataclasses: an option is declared once, as a field, and everybody reads it as an attribute."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import inspect
import math
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from lnz._cli.errors import BadInput, refuse_missing
from lnz._cli.process import program

LATER: Any = None
"""The default of an option whose value depends on the data and the model: it is None until they are known."""

Kind = TypeVar("Kind", bound="Options")


class Options:
    """The options of a command. A subclass is a frozen dataclass, and its docstring is the command's help.

    A field is annotated `Annotated[type, Option(help=...)]`, or with `Argument`. A field that is a dataclass itself stands for that one's
    options.

    Attributes:
        needs: the packages of the extra `cli` that the command cannot do without.
    """

    needs: ClassVar[tuple[str, ...]] = ("rich",)

    def check(self, given: Mapping[str, str]) -> None:
        """Raise BadInput for everything that can be refused without JAX.

        Args:
            given: the options that stand on the command line: the name of the field, and the option as it is written there.
        """


@dataclasses.dataclass(frozen=True)
class Option:
    """How a field is written on the command line.

    Attributes:
        flags: as written, with spaces between them; the first is its name in messages. By default the field's own name.
        help: one sentence or more.
        metavar: what stands for its value in the help.
        min: the smallest value.
        max: the largest value.
        read: from the text to the value; BadInput says what is wrong and what to do. By default the field's type tells.
        group: a heading of the help.
        positional: whether it is an argument, which has a place instead of a flag.
    """

    flags: str = ""
    help: str = ""
    metavar: str | None = None
    min: float | None = None
    max: float | None = None
    read: Callable[[str], Any] | None = None
    group: str = "Options"
    positional: bool = False


Argument = functools.partial(Option, group="Arguments", positional=True)
InData = functools.partial(Option, group="Data")
InLearning = functools.partial(Option, group="Learning")
InRun = functools.partial(Option, group="Run")

Json = Annotated[bool, Option("--json", help="Print one JSON object on stdout.")]
Force = Annotated[bool, Option("--force", help="Replace output files that exist.")]
ForceRun = Annotated[bool, InRun("--force", help="Replace the run if it exists already.")]
Resume = Annotated[
    Path | None,
    InRun(
        metavar="RUN", help="Run folder of an interrupted run to continue, exactly as if it had not been interrupted."
    ),
]
ResumeOrStart = Annotated[
    bool,
    InRun(
        "--resume-or-start",
        help="Continue the run in the run folder if it was interrupted, start it if there is none, and only report it if it is finished: the "
        "same command line may be repeated, as in a queue.",
    ),
]


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise BadInput(f"{value:g} is not above 0. Give a positive number")
    return value


def not_negative(text: str) -> float:
    """A number of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise BadInput(f"{value:g} is below 0 or not finite. Give 0 or a positive number")
    return value


def parse(name: str, kind: type[Kind], args: Sequence[str]) -> Kind | None:
    """The checked options of a command, or None where its help was asked for, which is printed."""
    parser, fields = _Parser(name, kind), {field.name: field for field in _fields(kind)}
    found, unknown = parser.parse_known_intermixed_args(list(args))
    if unknown and not unknown[0].startswith("-"):
        parser.error(f"Got an unexpected argument {unknown[0]!r}")
    if unknown:
        known = [flag for field in fields.values() if not field.option.positional for flag in field.flags]
        refuse_unknown("option", unknown[0].partition("=")[0], known, name)
    texts = vars(found)
    if texts.pop("help", False):
        print(parser.format_help())
        return None
    given = {name: fields[name].name_of for name in texts}
    missing = [field.name_of for field in fields.values() if field.required and field.name not in texts]
    if missing:
        parser.error(f"Missing {missing[0]}")
    values = {name: fields[name].value(text) for name, text in texts.items()}
    chosen = _build(kind, values)
    chosen.check(given)
    refuse_missing(chosen.needs)
    return chosen


@dataclasses.dataclass(frozen=True)
class _Field:
    """A field of a command's options."""

    name: str
    type: Any
    default: Any
    option: Option

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def flags(self) -> list[str]:
        return self.option.flags.split() or ["--" + self.name.rstrip("_").replace("_", "-")]

    @property
    def name_of(self) -> str:
        """The option as it is written."""
        return (self.option.metavar or self.name.upper()) if self.option.positional else self.flags[0]

    def value(self, text: Any) -> Any:
        """The value that a text stands for. Raises BadInput."""
        if not isinstance(text, str):  # a flag, or a list of texts
            return text
        choices = get_args(self.type) if get_origin(self.type) is Literal else ()
        if choices and text not in choices:
            known = ", ".join(map(repr, choices))
            raise BadInput(f"Invalid value for '{self.name_of}': {text!r} is not one of {known}. Choose one of them")
        option = self.option
        try:
            value = text if choices else (option.read or self.type)(text)
        except BadInput as error:
            raise BadInput(f"{self.name_of}: {error}") from None
        except ValueError:
            what = "an integer" if self.type is int else "a number"
            raise BadInput(f"{self.name_of}: {text!r} is not {what}. Give another value") from None
        low, high = -math.inf if option.min is None else option.min, math.inf if option.max is None else option.max
        if isinstance(value, int | float) and not low <= value <= high:
            limits = f"from {low:,} up" if high == math.inf else f"from {low:,} to {high:,}"
            raise BadInput(f"{self.name_of}: {value:g} is not {limits}. Give another value")
        return value

    @property
    def help(self) -> str:
        """The help, with the default where it is a number or a name."""
        default = self.default
        if isinstance(default, tuple):
            default = ",".join(f"{part:g}" for part in default)
        known = not self.required and default is not None and default is not False and default != ""
        shown = "on" if default is True else default
        return self.option.help.replace("**", "") + (f" [default: {shown}]" if known else "")

    @property
    def metavar(self) -> str:
        if get_origin(self.type) is Literal:
            return self.option.metavar or "{" + "|".join(get_args(self.type)) + "}"
        names = {int: "N", float: "X", Path: "PATH"}
        return self.option.metavar or (self.name.upper() if self.option.positional else names.get(self.type, "TEXT"))


class _Parser(argparse.ArgumentParser):
    """The parser of one command: it reads texts, and leaves out what is not given."""

    def __init__(self, name: str, kind: type[Options]):
        summary, fields = inspect.getdoc(kind) or "", _fields(kind)
        places = [
            f"[{field.metavar}]" if not field.required else field.metavar for field in fields if field.option.positional
        ]
        super().__init__(
            prog=f"lnz {name}",
            usage=" ".join(["lnz", name, "[OPTIONS]", *places]),
            description=summary,
            allow_abbrev=False,
            add_help=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=_Help,
        )
        self.command = name
        groups = {name: self.add_argument_group(name) for name in dict.fromkeys(field.option.group for field in fields)}
        for field in fields:
            option = field.option
            extra: dict[str, Any] = {"help": field.help.replace("%", "%%")}
            if field.type is bool:
                extra["action"] = argparse.BooleanOptionalAction if field.default else "store_true"
            else:
                extra["metavar"] = field.metavar
            if get_origin(field.type) is list:
                extra["action"] = "append"
            if option.positional:
                groups[option.group].add_argument(field.name, nargs="?", **extra)
            else:
                groups[option.group].add_argument(*field.flags, dest=field.name, **extra)
        groups.get("Options", self).add_argument(
            "-h", "--help", action="store_true", help="Show this message and exit."
        )

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message[:1].upper()}{message[1:].rstrip('.')}. {_hint(self.command)}")


class _Help(argparse.HelpFormatter):
    """Paragraphs and lists of a docstring, wrapped one by one."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26, width=_width())

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return _wrapped(text.replace("\n- lnz ", f"\n- {program()} "), width)


def listing(group: str, about: str, commands: Mapping[str, str], epilog: str) -> str:
    """The help of a group of commands."""
    prog, width = f"lnz {group}".strip(), _width()
    space = 2 + max(map(len, commands))
    lines = [
        textwrap.fill(f"  {name:{space}}{' '.join(text.split())}", width, subsequent_indent=" " * (space + 2))
        for name, text in commands.items()
    ]
    parts = [f"usage: {prog} COMMAND [OPTIONS]", _wrapped(about, width), "commands:\n" + "\n".join(lines)]
    parts.append(f"Run `{prog} COMMAND --help` for the options of a command.")
    return "\n\n".join(parts if group else [*parts, textwrap.fill(f"Try: {epilog}", width)])


def refuse_unknown(what: str, text: str, known: Iterable[str], command: str) -> NoReturn:
    """Raise BadInput for a command or option that there is not, with the one that was probably meant."""
    near = difflib.get_close_matches(text, known, 1)
    meant = f" Did you mean {near[0]}?" if near else ""
    raise BadInput(f"No such {what} {text!r}.{meant} {_hint(command)}")


def _hint(command: str) -> str:
    return f"Run `{f'lnz {command}'.strip()} --help` for what is understood"


def _width() -> int:
    return min(110, shutil.get_terminal_size().columns)


def _wrapped(text: str, width: int) -> str:
    paragraphs = []
    for paragraph in text.split("\n\n"):
        items = [" ".join(item.split()).replace("**", "") for item in ("\n" + paragraph).split("\n- ")]
        lines = [textwrap.fill(items[0], width)] if items[0] else []
        lines += [
            textwrap.fill(item, width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
            for item in items[1:]
        ]
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


@functools.cache
def _fields(kind: Any) -> tuple[_Field, ...]:
    """The fields of a dataclass, with those of dataclasses inside."""
    return tuple(_walk(kind))


def _walk(kind: Any) -> Iterator[_Field]:
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _walk(hint)
            continue
        read, option = get_args(hint)
        plain = [part for part in get_args(read) if part is not NoneType]
        if NoneType in get_args(read) and len(plain) == 1:
            read = plain[0]
        yield _Field(field.name, read, field.default, option)


def _build(kind: Any, values: dict[str, Any]) -> Any:
    hints, parts = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            parts[field.name] = _build(hints[field.name], values)
        elif field.name in values:
            parts[field.name] = values[field.name]
    return kind(**parts)
