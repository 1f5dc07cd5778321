"""The command line. Thin: all work is done by the library."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lnz._cli.app import call
from lnz._cli.errors import explain


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The entry point of `lnz`. Exits with 0 when all went well, 2 on bad usage or input, 1 when the work failed, and when
    interrupted 130 (Ctrl-C), 143 (SIGTERM) or 129 (SIGHUP)."""
    sys.exit(run(sys.argv[1:] if args is None else args))


def run(args: Sequence[str]) -> int:
    """Run one command and return its exit code. Every error is one line on stderr: `lnz: error: cause. remedy`."""
    try:
        code = call(args)
        sys.stdout.flush()
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        code, line = explain(error)
        if line is None or os.environ.get("LNZ_TRACEBACK"):
            raise
        if line:
            _tell(line)
        return code
    return code


def _tell(line: str) -> None:
    print("lnz: error: " + " ".join(line.split()), file=sys.stderr, flush=True)
