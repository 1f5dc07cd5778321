"""Commands from frozen dataclasses: an option is declared once, as a field, and everybody reads it as an attribute."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Optional, get_args, get_origin, get_type_hints

import typer

from lnz._cli.errors import BadInput

LATER: Any = None
"""The default of an option whose value depends on the data and the model: it is None until they are known."""


class Options:
    """The options of a command. A subclass is a frozen dataclass, and its docstring is the command's help.

    A field is annotated `Annotated[type, typer.Option(help=...)]`, or with `typer.Argument`. A field that is a dataclass itself stands for
    that one's options. A field of tuples is written with commas, and the option's callback turns that text into the tuple.
    """

    def check(self, given: Mapping[str, str]) -> None:
        """Raise BadInput for everything that can be refused without JAX.

        Args:
            given: the options that stand on the command line: the name of the field, and the option as it is written there.
        """


def add(app: typer.Typer, name: str, options: type[Options], work: str | Callable[[Any], str]) -> None:
    """Add a command: its options are checked, then passed to its function, whose result is the exit code (None: 0).

    Args:
        work: the function, as `module:function`, or what tells it from the options. Its module is imported after the check, so that help and
            refusals do not wait for JAX.
    """

    def command(ctx: typer.Context, **values: Any) -> None:
        sources = {param: ctx.get_parameter_source(param.name or "") for param in ctx.command.params}
        given = {
            param.name: param.opts[0] if param.opts[0].startswith("-") else param.opts[0].upper()
            for param, source in sources.items()
            if source is not None and source.name == "COMMANDLINE"
        }
        chosen = _build(options, values)
        chosen.check(given)
        module, _, function = (work if isinstance(work, str) else work(chosen)).partition(":")
        if code := getattr(importlib.import_module(module), function)(chosen):
            raise typer.Exit(code)

    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *_parameters(options)]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__signature__ = inspect.Signature(parameters)
    app.command(name, help=inspect.getdoc(options))(command)


def _parameters(kind: Any) -> Iterator[inspect.Parameter]:
    """The parameters that typer reads, one for each option of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, default = hints[field.name], field.default
        if dataclasses.is_dataclass(hint):
            yield from _parameters(hint)
            continue
        read, option = get_args(hint)
        if default is dataclasses.MISSING:
            default = inspect.Parameter.empty
        if any(get_origin(part) is tuple for part in (read, *get_args(read))):
            read, default = str, ",".join(f"{part:g}" for part in default) if isinstance(default, tuple) else default
        read = Annotated[Optional[read] if default is None else read, option]  # noqa: UP045 (values, not annotations)
        yield inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=read)


def _build(kind: Any, values: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    return kind(
        **{
            field.name: _build(hints[field.name], values)
            if dataclasses.is_dataclass(hints[field.name])
            else values[field.name]
            for field in dataclasses.fields(kind)
        }
    )


def positive(param: typer.CallbackParam, value: float | None) -> float | None:
    """The callback of an option that is a number above 0."""
    if value is not None and not 0 < value < float("inf"):
        raise BadInput(f"{param.opts[0]}: {value:g} is not above 0. Give a positive number")
    return value


def not_negative(param: typer.CallbackParam, value: float | None) -> float | None:
    """The callback of an option that is a number of at least 0."""
    if value is not None and not 0 <= value < float("inf"):
        raise BadInput(f"{param.opts[0]}: {value:g} is below 0 or not finite. Give 0 or a positive number")
    return value


InData = functools.partial(typer.Option, rich_help_panel="Data")
InLearning = functools.partial(typer.Option, rich_help_panel="Learning")
InRun = functools.partial(typer.Option, rich_help_panel="Run")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace output files that exist.")]
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
