"""The commands of `lnz`. Nothing here imports JAX: help and refusals are quick."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Sequence

import lnz
from lnz._cli import options
from lnz._cli.process import program
from lnz._cli.progress import Step

COMMANDS = {
    "train": ("lnz._cli.commands:Train", "lnz._cli.train:run"),
    "evaluate": ("lnz._cli.commands:Evaluate", "lnz._cli.commands:evaluate"),
    "sample": ("lnz._cli.commands:Sample", "lnz._cli.evaluate:sample"),
    "logz": ("lnz._cli.commands:LogZ", "lnz._cli.commands:log_z"),
    "audit": ("lnz._cli.commands:Audit", "lnz._cli.audit_command:audit"),
    "evidence": ("lnz._cli.evidence_options:Evidence", "lnz._cli.evidence_command:evidence"),
    "segment train": ("lnz._cli.segment_options:Train", "lnz._cli.segment:train"),
    "segment apply": ("lnz._cli.segment_options:Apply", "lnz._cli.segment:apply"),
    "segment evaluate": ("lnz._cli.segment_options:Evaluate", "lnz._cli.segment:evaluate"),
    "tag train": ("lnz._cli.tag_options:Train", "lnz._cli.tag:train"),
    "tag apply": ("lnz._cli.tag_options:Apply", "lnz._cli.tag:apply"),
    "tag evaluate": ("lnz._cli.tag_options:Evaluate", "lnz._cli.tag:evaluate"),
    "reference list": ("lnz._cli.commands:ReferenceList", "lnz._cli.reference_command:list_models"),
    "reference run": ("lnz._cli.commands:ReferenceRun", "lnz._cli.reference_command:run"),
}
"""Every command: its options, which are checked, and its function, whose module is imported after that."""

GROUPS = {
    "": """Unnormalised models p = exp(-E) / Z: train them, and measure a likelihood that you can trust.

Likelihoods are in nats per example, with an error and the guarantee of log Z.""",
    "segment": "Label every pixel of images by a conditional random field with neural potentials.",
    "tag": "Tag sequences by a chain CRF, on CoNLL column files: one token per line, word first, label last.",
    "reference": "Models whose log Z is known exactly: list them, or test a route on them.",
}
"""Commands with commands of their own, and all of them."""

_TRY = ("train digits", "evaluate runs/digits", "sample runs/digits -n 64 --out digits.png")


def call(args: Sequence[str]) -> int:
    """Run one command, or print its help, and return its exit code."""
    group = args[0] if args and args[0] in GROUPS and args[0] else ""
    rest = args[1:] if group else args
    if group == "" and "--version" in rest[:1]:
        print(f"lnz {lnz.__version__}")
        return 0
    known = _commands(group)
    if not rest or rest[0] in ("-h", "--help"):
        print(options.listing(group, GROUPS[group], known, " · ".join(f"{program()} {words}" for words in _TRY)))
        return 0
    if rest[0] not in known:
        options.refuse_unknown("command", rest[0], known, group)
    command = f"{group} {rest[0]}".strip()
    kind, work = COMMANDS[command]
    chosen = options.parse(command, pkgutil.resolve_name(kind), rest[1:])
    if chosen is None:
        return 0
    with Step("loading"):
        run = pkgutil.resolve_name(work)
    return run(chosen) or 0


def _commands(group: str) -> dict[str, str]:
    """The commands of a group with a sentence each; at the top, the groups too."""
    start = f"{group} " if group else ""
    inside = {name.removeprefix(start): COMMANDS[name][0] for name in COMMANDS if name.startswith(start)}
    found = {name: kind for name, kind in inside.items() if " " not in name}
    sentences = {
        name: (inspect.getdoc(pkgutil.resolve_name(kind)) or "").split("\n\n")[0] for name, kind in found.items()
    }
    return sentences if group else sentences | {name: text for name, text in GROUPS.items() if name}
