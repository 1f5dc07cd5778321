"""Results as tables on the terminal."""

from __future__ import annotations

from typing import Any

from lnz._cli.folder import held_out
from lnz._cli.output import emit, emit_json, fact_table
from lnz.report._facts import error_text, likelihood_text, log_z_facts, number


def likelihood_table(rows: list[dict[str, Any]], *, unit: str, title: str | None = None) -> Any:
    """A table of log-likelihoods, with the error from log Z and that of the data apart."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=_box(), pad_edge=False)
    for name in (f"log-likelihood, nats per {unit}", "", "± from log Z", "± from the data", "n"):
        table.add_column(name, justify="left" if name.startswith("log-l") else "right")
    for row in rows:
        value = likelihood_text(row)
        table.add_row(
            row["name"],
            f"[bold]{value}[/bold]" if row.get("strong") else value,
            error_text(row),
            "unknown" if row["data_standard_error"] is None else f"{row['data_standard_error']:.2g}",
            f"{row['n']:,}",
        )
    return table


def training(results: dict[str, Any], *, as_json: bool) -> None:
    """The results of a training run."""
    splits = results["splits"]
    judge = held_out(splits)
    if as_json:
        emit_json(splits[judge] | results)
        return
    rows = [found | {"name": name, "strong": name == judge} for name, found in splits.items()]
    rows.append(results["factorised"][judge] | {"name": f"factorised model, {judge}"})
    phases, seconds = results["phases"], results["seconds"]
    facts = [
        *log_z_facts(results["log_z_estimate"]),
        (
            "Gradient",
            f"relative gradient error {100 * phases['disagreement']:.1f} % (negative phase: {phases['negative_phase']})"
            + ("" if phases["energy_gap"] is None else f"; energy gap {phases['energy_gap']:+.2f} nats"),
        ),
        ("Model kept", f"after update {results['best_step']:,} of {results['updates']:,}"),
        ("Time", f"{seconds['training']:.0f} s training, {seconds['measuring']:.0f} s measuring and drawing"),
        ("Report", f"{results['run']}/report.html"),
    ]
    emit(
        "", f"{results['model']}, on {results['data']}", likelihood_table(rows, unit=results["unit"]), fact_table(facts)
    )


def likelihood(found: dict[str, Any], *, unit: str, name: str, as_json: bool) -> None:
    """A measured log-likelihood."""
    if as_json:
        emit_json(found)
        return
    low, high = found["lower"], found["upper"]
    facts = log_z_facts(estimate_of(found))
    if found["is_limit"]:
        value = number(found["log_likelihood"], found["standard_error"] or found["data_standard_error"], most=4)
        emit(
            f"{name} log-likelihood at least {value} nats per {unit}: a lower bound, since mean field sums the hidden layers"
        )
    if found["known"] != "exact" and found["is_limit"]:
        facts.insert(0, ("log-likelihood", f"at least {number(low, found['standard_error'])}, with the error of log Z"))
    elif found["known"] != "exact":
        limits = f"{number(low, found['standard_error'])} to {number(high, found['standard_error'])}, from log Z"
        facts.insert(0, ("log-likelihood", limits))
    emit(likelihood_table([found | {"name": name, "strong": True}], unit=unit), fact_table(facts))


def log_z(found: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    """An estimate of log Z."""
    if as_json:
        emit_json(found)
    else:
        emit(sentence)


def reference_models(models: list[dict[str, Any]], *, as_json: bool) -> None:
    """The models whose log Z is known."""
    if as_json:
        emit_json({"models": models})
        return
    from rich.table import Table

    table = Table(box=_box(), pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("log Z", justify="right", no_wrap=True)
    for name in ("∇", "model", "source"):
        table.add_column(name)
    for model in models:
        gradient = "yes" if model["gradient"] else ""
        table.add_row(model["name"], f"{model['log_z']:.9g}", gradient, model["title"], model["source"])
    emit(table)


def scores(found: Any, *, as_json: bool) -> None:
    """The scores of a route on the reference models."""
    if as_json:
        emit_json(
            {
                "scores": [
                    score._asdict() | {"error": score.error, "known": score.guarantee, "guarantee": score.guarantee}
                    for score in found
                ]
            }
        )
    else:
        emit(str(found))


def audit(found: Any, *, as_json: bool) -> None:
    """The checklist of an audit."""
    if as_json:
        emit_json(found.to_json())
    else:
        emit(str(found))


def sampling(found: dict[str, Any], *, as_json: bool) -> None:
    """Where samples went and how they were drawn."""
    if as_json:
        emit_json(found)
    else:
        emit(f"{found['n']:,} samples in {found['out']}: {found['how']}")


def estimate_of(found: dict[str, Any]) -> dict[str, Any]:
    """The estimate of log Z inside a likelihood."""
    named = {name: found[f"log_z_{name}"] for name in ("standard_error", "lower", "upper")}
    return {
        name: found[name]
        for name in ("log_z", "known", "guarantee", "route", "confidence", "assumption", "effective_sample_size")
    } | named


def _box() -> Any:
    from rich import box

    return box.SIMPLE_HEAD
