"""The page of an audit: the checklist, and three pictures of what it saw, in one file."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lnz.diagnostics._audit_report import AuditReport
from lnz.io import write_atomic
from lnz.report._page import CSS, escaped
from lnz.report._style import BLUE, GREEN, ORANGE, QUIET, Canvas

_COLOURS = {"passed": "#2f7d46", "failed": "#b3261e", "warning": "#9a6700", "untested": "#66727e"}
_WORDS = {"passed": "passed", "failed": "failed", "warning": "passed, with a warning", "untested": "not tested"}
_CAPTION = (
    "Left: the derivative of log Z by the identity against the difference quotient of log Z itself, one point a direction; on the "
    "diagonal they agree. Middle: how often the size of ∂E exceeds a value, over states of p; a straight line that falls no faster "
    "than the dashed one (slope -1) has no mean. Right: the energy along rays from the origin; where it falls, or in the end grows "
    "more slowly than the dashed line, Z is infinite."
)


def audit_page(path: Path, report: AuditReport) -> None:
    """Write the page of an audit, one HTML file that needs no other.

    Args:
        path: the HTML file.
        report: what `lnz.audit` found.
    """
    failed = sum(check.status == "failed" for check in report.checks)
    verdict = f"{failed} checks failed" if failed != 1 else "1 check failed"
    rows = "".join(
        f'<tr><td class="name" style="color:{_COLOURS[check.status]};font-weight:600">{_WORDS[check.status]}</td><td><b>{escaped(check.name)}</b><br>'
        f"{escaped(check.evidence)}{escaped(f' (z = {check.z:.3g})') if check.z is not None and np.isfinite(check.z) else ''}"
        + (f"<br><i>{escaped(check.remedy)}</i>" if check.remedy else "")
        + "</td></tr>"
        for check in report.checks
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "audit.png"
        pictures(file, report.numbers)
        source = base64.b64encode(file.read_bytes()).decode()
    body = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Audit of {escaped(report.energy)} · lnz</title><style>{CSS}</style></head><body><main>
<h1>Audit of {escaped(report.energy)}</h1>
<p class="quiet">Does ∇ log Z = E[-∇E] hold for this energy? {escaped(verdict if failed else "No check failed")}; {report.seconds:.1f} s.</p>
<figure><img alt="What the audit saw" src="data:image/png;base64,{source}"><figcaption>{escaped(_CAPTION)}</figcaption></figure>
<h2>Checks</h2>
<table>{rows}</table>
</main></body></html>
"""
    write_atomic(path, lambda file: file.write(body.encode()))


def pictures(path: Path, numbers: dict[str, Any]) -> None:
    """The two derivatives, the tail of ∂E and the energy along rays, side by side."""
    with Canvas(path, width=11, height=3.4) as figure:
        left, middle, right = figure.subplots(1, 3)
        _derivatives(left, numbers.get("derivatives"))
        _tail(middle, numbers.get("tails"))
        _rays(right, numbers.get("rays"))


def _absent(axes: Any, why: str) -> None:
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color=QUIET)
    axes.set_xticks([])
    axes.set_yticks([])


def _derivatives(axes: Any, found: dict[str, Any] | None) -> None:
    axes.set_title("The two derivatives of log Z")
    x, y, error = (
        np.asarray(found[name], float) if found else np.zeros(0) for name in ("identity", "difference", "error")
    )
    if found and not np.isfinite(y).any() and "forward" in found:
        y, error = np.asarray(found["forward"], float), np.zeros(len(x))
    fine = np.isfinite(x) & np.isfinite(y) & np.isfinite(error)
    if not fine.any():
        _absent(axes, "not tested")
        return
    x, y, error = x[fine], y[fine], error[fine]
    ends = np.asarray([min(x.min(), y.min()), max(x.max(), y.max())])
    ends = np.asarray([min(ends[0], (y - error).min()), max(ends[1], (y + error).max())])
    pad = 0.08 * (ends[1] - ends[0]) + 1e-3 * (1 + np.abs(ends).max())
    ends = ends + np.asarray([-pad, pad])
    axes.plot(ends, ends, color=QUIET, linewidth=1)
    axes.errorbar(x, y, yerr=error, fmt="o", markersize=4, color=BLUE, linewidth=1)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_xlabel("u·E[-∂E], the identity")
    axes.set_ylabel("difference quotient")


def _tail(axes: Any, found: dict[str, Any] | None) -> None:
    axes.set_title("Tail of ‖∂E‖")
    sizes = np.asarray(found["sizes"], float) if found else np.zeros(0)
    sizes = np.sort(sizes[np.isfinite(sizes) & (sizes > 0)])[::-1]
    if sizes.size < 10 or sizes[0] <= sizes[-1] * (1 + 1e-9):
        _absent(axes, "bounded, or not tested")
        return
    share = np.arange(1, sizes.size + 1) / sizes.size
    axes.loglog(sizes, share, color=ORANGE, linewidth=1.5)
    axes.loglog(sizes[-1] * np.asarray([1, 1 / share[0]]), [1, share[0]], color=QUIET, linestyle="--", linewidth=1)
    axes.set_xlim(sizes[-1] * 0.9, sizes[0] * 1.3)
    axes.set_xlabel("size, of the largest seen")
    axes.set_ylabel("share above it")


def _rays(axes: Any, found: dict[str, Any] | None) -> None:
    axes.set_title("Energy along rays")
    if not found:
        _absent(axes, "a bounded or discrete space")
        return
    radii, table = np.asarray(found["radii"]), np.asarray(found["energies"], float)
    shown = radii <= 1e4
    for kind, colour in (("random", GREEN), ("a coordinate", BLUE), ("a direction of descent", ORANGE)):
        rows = [row for row, name in zip(table, found["kinds"], strict=True) if name == kind][:16]
        for i, row in enumerate(rows):
            axes.plot(
                radii[shown],
                row[shown] - row[0],
                color=colour,
                linewidth=0.8,
                alpha=0.7,
                label=kind if i == 0 else None,
            )
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1)
    axes.plot(radii[shown], found["dimensions"] * np.log1p(radii[shown]), color=QUIET, linestyle="--", linewidth=1)
    axes.set_xlabel("radius")
    axes.set_ylabel("E, nats")
    axes.legend(loc="upper left")
