"""The report of an audit: checks with evidence and remedies, as text and JSON, and the numbers of its figures."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

Status = Literal["passed", "failed", "warning", "untested"]
"""The result of a check.

- ``passed``: the check found no problem.
- ``failed``: the identity, or one of its assumptions, does not hold; learning with this energy would go wrong.
- ``warning``: the identity holds, but something related needs care.
- ``untested``: the check could not run; the evidence is the reason.
"""

_MARKS = {"passed": "passed ", "failed": "FAILED ", "warning": "warning", "untested": "not run"}


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of an audit.

    Attributes:
        name: the property that was checked.
        status: the result.
        evidence: the observations, as a sentence.
        remedy: what to do about it; empty where nothing is needed.
        z: the evidence in standard errors, for statistical checks.
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
    """The result of `lnz.audit`. Prints as a checklist.

    Attributes:
        energy: the energy's name and its space.
        checks: the checks, in order.
        seconds: duration of the audit.
        numbers: data of the figures of its page, by name.
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
        raise KeyError(f"no check is named {name!r}: the checks are {', '.join(check.name for check in self.checks)}")

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
