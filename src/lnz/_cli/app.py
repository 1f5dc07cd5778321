"""The commands of `lnz`. Nothing here imports JAX: help and refusals are quick."""

from __future__ import annotations

from typing import Annotated

import typer

import lnz
from lnz._cli import commands, segment_options, tag_options
from lnz._cli.options import add


def _group(text: str, name: str | None = None) -> typer.Typer:
    group = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
        help=text,
        epilog=None
        if name
        else "Try: lnz train digits · lnz evaluate runs/digits · lnz sample runs/digits -n 64 --out digits.png",
    )
    if name:
        app.add_typer(group, name=name)
    return group


app = _group("""Unnormalised models p = exp(-E) / Z: train them, and measure a likelihood that you can trust.

Likelihoods are in nats per example, with an error and the guarantee of log Z.""")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version of lnz.")] = False,
) -> None:
    if version:
        typer.echo(f"lnz {lnz.__version__}")
        raise typer.Exit()


add(app, "train", commands.Train, "lnz._cli.train:run")
add(app, "evaluate", commands.Evaluate, "lnz._cli.evaluate:evaluate")
add(app, "sample", commands.Sample, "lnz._cli.evaluate:sample")
add(app, "logz", commands.LogZ, lambda options: options.command)
add(app, "audit", commands.Audit, "lnz._cli.audit_command:audit")

segment = _group("Label every pixel of images by a conditional random field with neural potentials.", "segment")
add(segment, "train", segment_options.Train, "lnz._cli.segment:train")
add(segment, "apply", segment_options.Apply, "lnz._cli.segment:apply")
add(segment, "evaluate", segment_options.Evaluate, "lnz._cli.segment:evaluate")

tag = _group("Tag sequences by a chain CRF, on CoNLL column files: one token per line, word first, label last.", "tag")
add(tag, "train", tag_options.Train, "lnz._cli.tag:train")
add(tag, "apply", tag_options.Apply, "lnz._cli.tag:apply")
add(tag, "evaluate", tag_options.Evaluate, "lnz._cli.tag:evaluate")

reference = _group("Models whose log Z is known exactly: list them, or test a route on them.", "reference")
add(reference, "list", commands.ReferenceList, "lnz._cli.reference_command:list_models")
add(reference, "run", commands.ReferenceRun, "lnz._cli.reference_command:run")
