"""Graphical models in the UAI format: readers and writers of models, evidence and results, plain or gzipped.

A model (`.uai`) is a word, MARKOV or BAYES; the number of variables and their cardinalities; the number of factors and
their scopes, each after its length; and their tables, each after its length, the last variable of the scope varying
fastest. Evidence (`.uai.evid`) is a number of observations and then pairs of a variable and its value, in one dialect
after a number of samples. Results are log10 Z (`.PR`) and one marginal per variable (`.MAR`).
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lnz._core.files import write_atomic
from lnz.io._data import DataError
from lnz.io._words import Numbers

if TYPE_CHECKING:
    from jaxtyping import Float

    from lnz._models.factor_graph import FactorGraph

_MOST_AXES = 64  # of an array of NumPy
_SHORT = 1 << 12  # bytes of a file that may say -inf


class UAIModel(NamedTuple):
    """The contents of a model file.

    Attributes:
        kind: MARKOV or BAYES.
        cardinalities: the number of values of each variable.
        scopes: of each factor, the variables in the order of its table's axes.
        tables: of each factor, its potentials (not their logarithms), of the shape of its scope's cardinalities.
    """

    kind: str
    cardinalities: list[int]
    scopes: list[tuple[int, ...]]
    tables: list[np.ndarray]

    def log_tables(self) -> list[np.ndarray]:
        """log ψ_a of every factor, in nats; -inf where ψ_a = 0."""
        with np.errstate(divide="ignore"):
            return [np.log(table) for table in self.tables]


def read_uai(
    path: str | os.PathLike[str], *, evidence: str | os.PathLike[str] | Mapping[int, int] | None = None
) -> FactorGraph:
    """Read a graphical model in the UAI format, MARKOV or BAYES, plain or gzipped, as a factor graph.

    p(x) = 1/Z ∏_a ψ_a(x_a); the graph holds log ψ_a in nats, and -inf where ψ_a = 0. With evidence, Z is the
    probability (BAYES) or the weight (MARKOV) of the evidence, and an observed variable keeps its number and has one
    value left, as after `FactorGraph.evidence`.

    Args:
        path: the model.
        evidence: a file of evidence, used only if it is given, or {variable: value}.

    Raises:
        DataError: for anything wrong with a file, in one line with its name, the line and the word. Sizes are checked
            against the size of the file before memory is allocated.

    Example:
        >>> import pathlib, tempfile, lnz
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "coin.uai"
        >>> _ = path.write_text("MARKOV 1 3 1 1 0 3 0.5 2.5 1")
        >>> print(round(float(lnz.log_partition(lnz.io.read_uai(path)).value), 4))  # log(0.5 + 2.5 + 1)
        1.3863

    The format: UAI 2014 inference competition.
    """
    model = read_uai_model(path)
    seen = checked_evidence(evidence, model.cardinalities)
    import lnz

    tables = model.log_tables()
    if seen:  # in NumPy, which compiles nothing
        parts = [slice(seen[i], seen[i] + 1) if i in seen else slice(None) for i in range(len(model.cardinalities))]
        tables = [table[tuple(parts[i] for i in scope)] for scope, table in zip(model.scopes, tables, strict=True)]
    cardinalities = [1 if i in seen else k for i, k in enumerate(model.cardinalities)]
    return lnz.FactorGraph(cardinalities, model.scopes, tables)


def read_uai_model(path: str | os.PathLike[str]) -> UAIModel:
    """Read a model in the UAI format as arrays, without making a factor graph. Raises DataError."""
    with Numbers(path, ("MARKOV", "BAYES")) as numbers:
        cardinalities = _cardinalities(numbers)
        scopes, sizes = _scopes(numbers, cardinalities)
        flat = _tables(numbers, sizes)
    ends = np.cumsum(sizes, dtype=np.int64) + np.arange(1, len(sizes) + 1)
    tables = [
        flat[end - size : end].reshape([cardinalities[variable] for variable in scope])
        for end, size, scope in zip(ends.tolist(), sizes, scopes, strict=True)
    ]
    return UAIModel(numbers.header, cardinalities, scopes, tables)


def read_uai_evidence(path: str | os.PathLike[str]) -> dict[int, int]:
    """Read evidence, {variable: value}, in the dialect with or without a leading number of samples.

    The dialect follows from the number of numbers: 1 + 2 k for k observations, or 2 + 2 k. `read_uai` checks whether
    the values belong to a model.

    Raises:
        DataError: wrong counts, negative or fractional values, a variable twice, more than one sample.

    Example:
        >>> import pathlib, tempfile, lnz
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "coin.uai.evid"
        >>> _ = path.write_text("2 7 1 0 2")
        >>> lnz.io.read_uai_evidence(path)
        {7: 1, 0: 2}
    """
    return _read_evidence(path, None)


def _cardinalities(numbers: Numbers) -> list[int]:
    n = numbers.count("variables", least=1)
    start = numbers.at
    found = numbers.take(n)
    bad = np.flatnonzero((found < 1) | (found != np.floor(found)))
    if len(bad):
        variable, value = int(bad[0]), found[bad[0]]
        what = f"variable {variable} has cardinality {value:g}. Write an integer from 1 up"
        raise numbers.error(start + variable, what)
    if len(found) < n:
        raise numbers.cut(f"after {len(found)} of {n} cardinalities")
    return [int(value) for value in found.tolist()]


def _scopes(numbers: Numbers, cardinalities: list[int]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The scopes of all factors, and how many entries each table should have."""
    factors, n = numbers.count("factors"), len(cardinalities)
    numbers.check_room(3 * factors, f"declares {factors} factors", numbers.at - 1)
    scopes, sizes, total = [], [], factors
    for factor in range(factors):
        found = numbers.take(1)
        if len(found) == 0:
            raise numbers.cut(f"after {factor} of {factors} scopes")
        arity = float(found[0])
        if not (0 <= arity <= n and arity == int(arity)):
            what = f"the scope of factor {factor} has {arity:g} variables, and there are {n}. Write an integer"
            raise numbers.error(numbers.at - 1, f"{what} from 0 to {n}")
        start, values = numbers.at, numbers.take(int(arity)).tolist()
        scope = tuple(map(int, values))
        if len(scope) < arity:
            raise numbers.cut(f"within the scope of factor {factor} of {factors}")
        if scope and (min(values) < 0 or max(scope) >= n or list(scope) != values or len(set(scope)) < len(scope)):
            raise _bad_scope(numbers, start, factor, values, n)
        size = 1
        for variable in scope:  # stops early: a product of many large numbers is slow
            size *= cardinalities[variable]
            if size > numbers.room:
                break
        total += size
        numbers.check_room(total, f"the tables up to factor {factor} take {total:.6g} numbers or more", start - 1)
        if len(scope) > _MOST_AXES:
            what = f"factor {factor} has {len(scope)} variables, and an array has at most {_MOST_AXES} axes"
            raise numbers.error(start - 1, f"{what}. Leave out the variables that take one value")
        scopes.append(scope)
        sizes.append(size)
    return scopes, sizes


def _bad_scope(numbers: Numbers, start: int, factor: int, values: list[float], n: int) -> DataError:
    for i, value in enumerate(values):
        if value in values[:i]:
            why = f"variable {value:g} is twice in the scope of factor {factor}. Name each once"
            return numbers.error(start + i, why)
        if not (0 <= value < n and value == int(value)):
            why = f"the scope of factor {factor} names variable {value:g}. Variables are numbered from 0 to {n - 1}"
            return numbers.error(start + i, why)
    raise AssertionError("the scope is good")


def _tables(numbers: Numbers, sizes: list[int]) -> Float[np.ndarray, " total"]:
    """All tables, each behind its number of entries, in one array."""
    start, total = numbers.at, sum(sizes) + len(sizes)
    flat = numbers.take(total)
    wanted = np.asarray(sizes, np.float64)
    heads = np.cumsum(np.append(0, wanted + 1)).astype(np.int64)[:-1]
    there = heads[heads < len(flat)]
    wrong = np.flatnonzero(flat[there] != wanted[: len(there)])
    negative = np.flatnonzero(flat < 0)
    first = int(there[wrong[0]]) if len(wrong) else len(flat)
    if len(negative) and negative[0] < first:
        index = int(negative[0])
        factor = int(np.searchsorted(heads, index, side="right")) - 1
        what = f"the table of factor {factor} holds {flat[index]:g}. Potentials are 0 or positive: correct it"
        raise numbers.error(start + index, what)
    if len(wrong):
        factor = int(wrong[0])
        what = f"the table of factor {factor} declares {flat[first]:.15g} entries, but its scope has {sizes[factor]}"
        raise numbers.error(start + first, f"{what} configurations. Correct it, or how many entries stand before it")
    if len(flat) < total:
        factor = int(np.searchsorted(heads, len(flat), side="left")) - 1
        if factor < 0 or len(flat) - heads[factor] > sizes[factor]:
            raise numbers.cut(f"after {factor + 1} of {len(sizes)} tables")
        what = f"after {len(flat) - int(heads[factor]) - 1} of {sizes[factor]} entries of the table of factor {factor}"
        raise numbers.cut(what)
    numbers.finish("the last table")
    return flat


def checked_evidence(
    evidence: str | os.PathLike[str] | Mapping[int, int] | None, cardinalities: Sequence[int]
) -> dict[int, int]:
    """Evidence, {variable: value}, from a file or as it is, for variables of these cardinalities. Raises DataError."""
    if evidence is None:
        return {}
    if not isinstance(evidence, Mapping):
        return _read_evidence(evidence, cardinalities)
    for variable, value in evidence.items():
        if problem := _misfit(variable, value, cardinalities):
            raise DataError(f"evidence: {problem}")
    return {int(variable): int(value) for variable, value in evidence.items()}


def _read_evidence(path: str | os.PathLike[str], cardinalities: Sequence[int] | None) -> dict[int, int]:
    with Numbers(path) as numbers:
        found = numbers.rest().tolist()
        if not found:
            raise DataError(f"{path}: holds nothing but white space. Write 0 where nothing was observed")
        start = 1
        if len(found) != 1 + 2 * found[0] or len(found) % 2 == 0:
            start = 2
            if len(found) < 2 or found[0] != 1 or len(found) != 2 + 2 * found[1] or len(found) % 2:
                raise _bad_count(numbers, found)
        evidence: dict[int, int] = {}
        for i in range(start, len(found), 2):
            variable, value = found[i : i + 2]
            for index, number in ((i, variable), (i + 1, value)):
                if number < 0 or number != int(number):
                    raise numbers.error(index, f"{number:g} is not an integer from 0 up. Correct it")
            if variable in evidence:
                raise numbers.error(i, f"variable {variable:g} is observed twice. Keep one observation")
            if cardinalities is not None and (problem := _misfit(int(variable), int(value), cardinalities)):
                raise numbers.error(i if variable >= len(cardinalities) else i + 1, problem)
            evidence[int(variable)] = int(value)
    return evidence


def _bad_count(numbers: Numbers, found: list[float]) -> DataError:
    at, samples = 1, 0
    while samples < found[0] and at < len(found) and 0 <= found[at] == found[at] // 1:
        at, samples = at + 1 + 2 * int(found[at]), samples + 1
    if samples > 1 and samples == found[0] and at == len(found):
        why = f"holds {samples} samples of evidence. Give a file for each"
        return numbers.error(0, why)
    why = f"declares {found[0]:.15g} observations, but {len(found) - 1} numbers follow"
    return numbers.error(0, f"{why}. Write a variable and a value for each, behind their number")


def _misfit(variable: int, value: int, cardinalities: Sequence[int]) -> str | None:
    if not 0 <= variable < len(cardinalities):
        return f"variable {variable} is not in the model. Variables are numbered from 0 to {len(cardinalities) - 1}"
    if not 0 <= value < cardinalities[variable]:
        values = f"0 to {cardinalities[variable] - 1}"
        return f"variable {variable} has no value {value}. Its values are numbered from {values}"
    return None


def write_uai(path: str | os.PathLike[str], graph: FactorGraph) -> None:
    """Write a factor graph as a MARKOV model in the UAI format, gzipped where the name ends in `.gz`.

    The file holds ψ_a = exp(log-potential) with 17 digits, and takes its path's place whole or not at all.

    Raises:
        ValueError: log-potentials that no float64 potential can hold (above 709 or, if not -inf, below -745 nats).
        WriteError: where the system refuses.
    """
    lines = ["MARKOV", str(len(graph.cardinalities)), " ".join(map(str, graph.cardinalities)), str(len(graph.scopes))]
    lines += [" ".join(map(str, (len(scope), *scope))) for scope in graph.scopes]
    for table in potentials(graph):
        lines += ["", str(table.size), " ".join(map(repr, table.ravel().tolist()))]
    _write(path, "\n".join(lines) + "\n")


def potentials(graph: FactorGraph) -> list[np.ndarray]:
    """ψ_a = exp(log-potential) of every factor, in float64. Raises ValueError where a log-potential has no such exponential."""
    flat = np.asarray(graph.log_potentials, np.float64)
    parts = np.split(flat, graph.offsets[1:]) if len(graph.offsets) else []
    found = []
    for factor, table in enumerate(graph.table_of):
        log = parts[table]
        with np.errstate(over="ignore", under="ignore"):
            exponentials = np.exp(log)
        if not np.isfinite(exponentials).all() or ((exponentials == 0) & (log != -np.inf)).any():
            worst = log[np.argmax(np.where(np.isfinite(log), np.abs(log), 0))]
            raise ValueError(
                f"the table of factor {factor} holds the log-potential {worst:g}, whose exponential is outside the range of float64. "
                "Subtract a constant from the table, and add it to log Z"
            )
        found.append(exponentials.reshape(graph.shapes[table]))
    return found


def write_uai_evidence(path: str | os.PathLike[str], evidence: Mapping[int, int]) -> None:
    """Write evidence, {variable: value}, in the dialect without a number of samples. Raises ValueError, WriteError."""
    for variable, value in evidence.items():
        if variable < 0 or value < 0 or variable != int(variable) or value != int(value):
            raise ValueError(f"evidence: {variable!r}: {value!r} are not integers from 0 up. Correct them")
    pairs = [f" {int(variable)} {int(value)}" for variable, value in evidence.items()]
    _write(path, f"{len(evidence)}{''.join(pairs)}\n")


def read_uai_pr(path: str | os.PathLike[str]) -> float:
    """Read a result file `.PR`: log10 Z as it is printed there (not nats); -inf where Z = 0. Raises DataError."""
    words: list[bytes] = []
    with contextlib.suppress(OSError):  # reported below
        if os.path.isfile(path):
            with open(path, "rb") as file:
                words = file.read(_SHORT).split()
    if len(words) == 2 and words[0] == b"PR" and words[1].lower() in (b"-inf", b"-infinity"):
        return -math.inf
    with Numbers(path, ("PR",)) as numbers:
        found = numbers.rest().tolist()
        if len(found) == 2 and found[0] == 1:  # behind a number of samples
            return found[1]
        if len(found) != 1:
            raise (
                numbers.error(0, f"{len(found)} numbers. Give one, log10 Z") if found else numbers.cut("before log10 Z")
            )
    return found[0]


def write_uai_pr(path: str | os.PathLike[str], log10_z: float) -> None:
    """Write a result file `.PR`: log10 Z (log Z in nats divided by log 10). Raises ValueError for NaN and +inf, WriteError."""
    if math.isnan(log10_z) or log10_z == math.inf:
        raise ValueError(f"log10 Z is {log10_z}. Give a finite number, or -inf where Z = 0")
    _write(path, f"PR\n{float(log10_z)!r}\n")


def read_uai_mar(path: str | os.PathLike[str]) -> list[Float[np.ndarray, " cardinality"]]:
    """Read a result file `.MAR`: p(x_i) of every variable, with or without a leading number of samples. Raises DataError."""
    with Numbers(path, ("MAR",)) as numbers:
        found = numbers.rest()
        for start in (0, 1):
            marginals = _marginals(found[start:]) if start == 0 or (len(found) and found[0] == 1) else None
            if marginals is not None:
                break
        else:
            raise numbers.cut("too soon, or too late: its counts do not match its numbers")
        bad = np.flatnonzero(found < 0)
        if len(bad):
            raise numbers.error(int(bad[0]), f"{found[bad[0]]:g} is not a probability. Correct it")
    return marginals


def write_uai_mar(path: str | os.PathLike[str], marginals: Iterable[Float[np.ndarray, " cardinality"]]) -> None:
    """Write a result file `.MAR`: p(x_i) of every variable, 17 digits each. Raises ValueError for invalid probabilities, WriteError."""
    parts = []
    for variable, marginal in enumerate(marginals):
        values = np.asarray(marginal, np.float64)
        if values.ndim != 1 or not (np.isfinite(values).all() and (values >= 0).all()):
            raise ValueError(f"the marginal of variable {variable} holds no probabilities. Give a vector of them")
        parts.append(f" {len(values)} {' '.join(map(repr, values.tolist()))}")
    _write(path, f"MAR\n{len(parts)}{''.join(parts)}\n")


def _marginals(found: Float[np.ndarray, " n"]) -> list[np.ndarray] | None:
    """The marginals after their number, or None if the counts do not match."""
    marginals, at = [], 1
    while at < len(found):
        size = float(found[at])
        if size < 1 or size != int(size) or at + 1 + size > len(found):
            return None
        marginals.append(found[at + 1 : at + 1 + int(size)])
        at += 1 + int(size)
    return marginals if len(found) and len(marginals) == found[0] else None


def _write(path: str | os.PathLike[str], text: str) -> None:
    data = text.encode()
    if str(path).endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    write_atomic(path, lambda file: file.write(data))
