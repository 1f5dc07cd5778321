"""`report.html`: a run on one page, with everything inside it."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from lnz.io import write_atomic
from lnz.report._facts import error_text, likelihood_text, log_z_facts, number

CSS = """
:root { --ink: #22303c; --quiet: #66727e; --line: #dfe4e8; --soft: #f6f8f9; --blue: #2f6f9f; }
* { box-sizing: border-box; }
body { margin: 0; background: white; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 48px 24px 72px; }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 4px; font-weight: 600; }
h2 { font-size: 18px; margin: 44px 0 10px; font-weight: 600; }
p { margin: 6px 0; max-width: 75ch; }
.quiet { color: var(--quiet); }
.headline { display: flex; flex-wrap: wrap; gap: 14px; margin: 26px 0 8px; }
.card { flex: 1 1 200px; background: var(--soft); border: 1px solid var(--line); border-radius: 8px; padding: 14px 18px; }
.card .value { font-size: 26px; font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }
.card .label, .card .small { color: var(--quiet); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 15px; }
th { text-align: left; font-weight: 500; color: var(--quiet); font-size: 13px; }
th, td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.name { white-space: nowrap; color: var(--quiet); padding-right: 28px; }
tr.strong td { font-weight: 600; }
figure { margin: 14px 0 0; }
figure img { display: block; width: 100%; height: auto; }
figure img.narrow { max-width: 680px; }
figcaption { color: var(--quiet); font-size: 14px; margin-top: 6px; max-width: 80ch; }
details { border: 1px solid var(--line); border-radius: 8px; padding: 10px 16px; margin-top: 10px; }
summary { cursor: pointer; font-weight: 500; }
details table { margin-top: 8px; font-size: 14px; }
code { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
@media (max-width: 640px) { main { padding: 24px 14px 48px; } th.number { white-space: normal; } th, td { padding-right: 8px; } }
@media print { main { padding: 0; } details { border: 0; padding: 0; } }
"""

_CAPTIONS = {
    "curves": (
        "Training",
        "Left: the held-out log-likelihood during training; the band is the interval of log Z. "
        "Middle: the mean free energy of the data less that of the chains; it is steady once training has converged, and far below 0 where the "
        "data have lower energies than the model's own states, by overfitting or because the chains lag. "
        "Right: the norm of the difference of the gradient's two phases over the sum of their norms, in one update; with mini-batches it "
        "does not reach 0.",
    ),
    "objective": (
        "Training",
        "Left: the held-out log-likelihood during training; the band is the interval of log Z. "
        "Right: the mean of the training objective, {objective}, on the training data; it need not move with the likelihood.",
    ),
    "samples": ("Samples", "Held-out data, and states drawn from the model ({samples})."),
    "moments": (
        "Means and covariances",
        "Each point is a variable, or a pair of them. On the diagonal, the model's samples agree with the training data.",
    ),
    "filters": (
        "Parameters",
        "What the model has learned: weights of hidden units, or couplings; red is positive, blue negative.",
    ),
}


def page(
    path: Path, *, title: str, results: dict[str, Any], config: dict[str, Any], pictures: dict[str, bytes]
) -> None:
    """Write the page of a run: its likelihoods, how log Z is known, the pictures and the settings, in one file that needs no other.

    Args:
        path: the HTML file.
        title: the run's name.
        results: as `results.json` holds them.
        config: as `config.json` holds it.
        pictures: PNGs, by the names `curves`, `samples`, `moments` and `filters`.
    """
    figures = "".join(
        _picture(name, pictures[name], results, config)
        for name in ("curves", "samples", "moments", "filters")
        if name in pictures
    )
    body = f"""<h1>{escaped(title)}</h1>
<p class="quiet">{escaped(_upper(results["model"]))}, trained on {escaped(results["data"])}.</p>
{_cards(results)}
{_alarms(results.get("alarms"))}
<h2>Log-likelihood</h2>
{_likelihoods(results)}
<p class="quiet">The error of log Z is shared by all data; the error of the data is that of their mean as a sample. The factorised model
has the same means and no dependence between variables.</p>
<h2>log Z and its guarantee</h2>
{_log_z(results)}
{figures}
<h2>Settings</h2>
{_settings(config)}"""
    write_atomic(path, lambda file: file.write(document(title, body).encode()))


def _alarms(alarms: list[dict[str, Any]] | None) -> str:
    """The alarms of the monitor, as a table; empty where there are none."""
    if not alarms:
        return ""
    rows = "".join(
        f'<tr><td class="number">{alarm["step"]:,}</td><td>{escaped(_upper(alarm["seen"]))}.</td><td>{escaped(alarm["remedy"])}.</td></tr>'
        for alarm in alarms
    )
    head = '<tr><th class="number">update</th><th>observation</th><th>remedy</th></tr>'
    return f'<h2>Alarms</h2><div class="scroll"><table class="alarms">{head}{rows}</table></div>'


def _cards(results: dict[str, Any]) -> str:
    splits, unit = results["splits"], results["unit"]
    name = next(part for part in ("test", "validation", "train") if part in splits)
    found, alone = splits[name], results["factorised"][name]
    gain = found["log_likelihood"] - alone["log_likelihood"]
    error = error_text(found)
    by_z = {"exact": "log Z is exact", "unknown": "unknown error from log Z"}.get(error, f"± {error} from log Z")
    of_data = found["data_standard_error"]
    by_data = "" if of_data is None else f", ± {of_data:.2g} from the data"
    seconds = results["seconds"]
    cards = [
        (f"{name} log-likelihood, nats per {unit}", likelihood_text(found), by_z + by_data),
        (
            "above the factorised model",
            f"{number(gain, 0.1, sign=True)} nats",
            f"it scores {likelihood_text(alone)}",
        ),
        ("training time", _duration(seconds["training"]), f"and {_duration(seconds['measuring'])} to measure and draw"),
    ]
    inner = "".join(
        f'<div class="card"><div class="label">{escaped(label)}</div><div class="value">{escaped(value)}</div>'
        f'<div class="small">{escaped(small)}</div></div>'
        for label, value, small in cards
    )
    return f'<div class="headline">{inner}</div>'


def _likelihoods(results: dict[str, Any]) -> str:
    head = (
        f'<tr><th>part of the data</th><th class="number">nats per {escaped(results["unit"])}</th>'
        '<th class="number">± from log Z</th><th class="number">± from the data</th>'
        '<th class="number">factorised model</th><th class="number">n</th></tr>'
    )
    rows = []
    for name, found in results["splits"].items():
        alone = results["factorised"][name]
        of_data = found["data_standard_error"]
        cells = (
            likelihood_text(found),
            error_text(found),
            "unknown" if of_data is None else f"{of_data:.2g}",
            likelihood_text(alone),
            f"{found['n']:,}",
        )
        numbers = "".join(f'<td class="number">{escaped(cell)}</td>' for cell in cells)
        rows.append(f'<tr class="{"strong" if name == "test" else ""}"><td>{escaped(name)}</td>{numbers}</tr>')
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _log_z(results: dict[str, Any]) -> str:
    phases = results["phases"]
    rows = [(name if name == "log Z" else name.lower(), fact) for name, fact in log_z_facts(results["log_z_estimate"])]
    rows.append(
        (
            "relative gradient error",
            f"{100 * phases['disagreement']:.1f} %: ‖positive - negative‖ / (‖positive‖ + ‖negative‖) of the two phases on the training data "
            f"(negative phase: {phases['negative_phase']})" + _gap(phases["energy_gap"]),
        )
    )
    rows.append(("model kept", f"after update {results['best_step']:,} of {results['updates']:,}"))
    return fact_table(rows)


def _picture(name: str, png: bytes, results: dict[str, Any], config: dict[str, Any]) -> str:
    objective = config["settings"].get("objective", "likelihood")
    title, caption = _CAPTIONS["objective" if name == "curves" and objective != "likelihood" else name]
    return figure(title, caption.format(samples=results["samples"], objective=objective), png)


def _settings(config: dict[str, Any]) -> str:
    data = config["data"]
    facts = [
        *config["settings"].items(),
        ("rows", ", ".join(f"{name} {n:,}" for name, n in data["rows"].items())),
        ("coding", ", ".join(f"{name} {value}" for name, value in data["coding"].items() if value is not None)),
        ("data sha256", data["sha256"]),
    ]
    made = [("begun", config["begun"]), ("command", " ".join(config["command"])), *config["versions"].items()]
    shown = [(str(name).replace("_", " "), _plain(value)) for name, value in facts if value is not None]
    return (
        f"<details open><summary>The run</summary>{fact_table(shown, code=True)}</details>"
        f"<details><summary>Where and with what</summary>{fact_table([(n, _plain(v)) for n, v in made], code=True)}</details>"
    )


def fact_table(rows: list[tuple[str, str]], *, code: bool = False) -> str:
    """Names and facts as a table."""
    tag = ("<code>", "</code>") if code else ("", "")
    inner = "".join(
        f'<tr><td class="name">{escaped(name)}</td><td>{tag[0]}{escaped(fact)}{tag[1]}</td></tr>' for name, fact in rows
    )
    return f"<table>{inner}</table>"


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _gap(gap: float | None) -> str:
    return (
        "" if gap is None else f"; the data's mean free energy less the model's is {number(gap, 0.1, sign=True)} nats"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def figure(title: str, caption: str, png: bytes) -> str:
    """A picture under its title."""
    source = base64.b64encode(png).decode()
    return (
        f'<h2>{escaped(title)}</h2><figure><img alt="{escaped(title)}" src="data:image/png;base64,{source}">'
        f"<figcaption>{escaped(caption)}</figcaption></figure>"
    )


def document(title: str, body: str) -> str:
    """A page that needs no other file."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(title)} · lnz</title><style>{CSS}</style></head><body><main>
{body}
</main></body></html>
"""


def escaped(value: Any) -> str:
    """Text that is safe in HTML."""
    return html.escape(str(value))
