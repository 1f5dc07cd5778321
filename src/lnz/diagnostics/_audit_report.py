"""What an audit found: a checklist with evidence and remedies, in words, as JSON, and with the numbers behind its pictures."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

Status = Literal["passed", "failed", "warning", "untested"]
"""How a check ended.

- ``passed``: looked for, and not found.
- ``failed``: the identity, or what it rests on, does not hold; learning on this energy would go wrong.
- ``warning``: the identity holds, and something near it needs care.
- ``untested``: could not be looked for, with the reason.
"""

_MARKS = {"passed": "passed ", "failed": "FAILED ", "warning": "warning", "untested": "not run"}


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of an audit.

    Attributes:
        name: what was checked.
        status: how it ended.
        evidence: what was seen, in words.
        remedy: what to do about it; empty where nothing needs doing.
        z: the evidence in standard errors, where it has any.
    """

    name: str
    status: Status
    evidence: str
    remedy: str = ""
    z: float | None = None

    def __str__(self) -> str:
        line = f"{_MARKS[self.status]}  {self.name}: {self.evidence}"
        if self.z is not None and math.isfinite(self.z):
            line += f" (z = {self.z:.3g})"
        return line + (f" -> {self.remedy}" if self.remedy else "")


@dataclasses.dataclass(frozen=True)
class AuditReport:
    """What `lnz.audit` found. Prints as a checklist.

    Attributes:
        energy: the energy's name and where it lives.
        checks: one a line.
        seconds: how long the audit took.
        numbers: what the pictures of its page are drawn from, by name.
    """

    energy: str
    checks: tuple[Check, ...]
    seconds: float
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not any(check.status == "failed" for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        """The check of this name. Raises KeyError."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"no check is named {name!r}: there are {', '.join(check.name for check in self.checks)}")

    def __str__(self) -> str:
        count = {status: sum(check.status == status for check in self.checks) for status in _MARKS}
        words = [f"{n} {_words(status)}" for status, n in count.items() if n]
        return "\n".join(
            [f"Audit of {self.energy}", *map(str, self.checks), f"{', '.join(words)}; {self.seconds:.1f} s"]
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values: `passed`, `seconds`, `energy`, and the checks with their z (null where there is none, or it is infinite)."""
        checks = [dataclasses.asdict(check) for check in self.checks]
        for check in checks:
            z = check["z"]
            check["z"] = float(z) if z is not None and math.isfinite(z) else None
        return {"energy": self.energy, "passed": self.passed, "seconds": self.seconds, "checks": checks}


def _words(status: str) -> str:
    return {"untested": "could not be tested", "warning": "with a warning"}.get(status, status)
