"""Hard constraints of label schemes: which labels can follow each other, and which can begin and end a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool


class Constraints(NamedTuple):
    """Arguments of `lnz.LinearChain`: pass them as `**constraints._asdict()`.

    Attributes:
        allowed_transitions: whether a label can follow another, `[from, to]`.
        allowed_start: labels that can begin a sequence.
        allowed_end: labels that can end a sequence.
    """

    allowed_transitions: Bool[np.ndarray, "K K"]
    allowed_start: Bool[np.ndarray, " K"]
    allowed_end: Bool[np.ndarray, " K"]


def bio_constraints(labels: Sequence[str]) -> Constraints:
    """Constraints of the BIO scheme (IOB2): `I-X` follows `B-X` or `I-X` alone.

    Args:
        labels: their names in order: "O", or "B-" or "I-" and the kind of chunk; a bare "B" or "I" is a kind of its own.

    Raises:
        ValueError: for a name that is not of the scheme, or a duplicate.

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> constraints = lnz.crf.bio_constraints(["O", "B-NP", "I-NP"])
        >>> constraints.allowed_transitions.astype(int).tolist()
        [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
        >>> chain = lnz.LinearChain(jnp.zeros((2, 3)), jnp.zeros((3, 3)), **constraints._asdict())
        >>> round(float(jnp.exp(lnz.log_partition(chain).value)))
        5
    """
    return _constraints(labels, "BIO", continues="I", unfinished="")


def bioes_constraints(labels: Sequence[str]) -> Constraints:
    """Constraints of the BIOES scheme: a chunk is `S-X`, or `B-X`, any number of `I-X`, and `E-X`.

    Arguments and errors are those of `bio_constraints`.

    Example:
        >>> import lnz
        >>> lnz.crf.bioes_constraints(["O", "B-A", "I-A", "E-A", "S-A"]).allowed_end.tolist()
        [True, False, False, True, True]
    """
    return _constraints(labels, "BIOES", continues="IE", unfinished="BI")


def _constraints(labels: Sequence[str], scheme: str, *, continues: str, unfinished: str) -> Constraints:
    """Constraints where letters that continue a chunk follow B or I of their kind, and nothing else follows an unfinished chunk."""
    if len(set(labels)) != len(labels):
        raise ValueError(f"the label {next(x for x in labels if list(labels).count(x) > 1)!r} is duplicated")
    parts = [(label[:1], label[2:]) for label in labels]
    for label, (letter, kind) in zip(labels, parts, strict=True):
        known = label == "O" or (
            letter in set(scheme) - {"O"} and label[1:2] in ("", "-") and bool(kind) == ("-" in label[1:2])
        )
        if not known:
            raise ValueError(
                f"the label {label!r} is not of the {scheme} scheme: expected O, or one of {', '.join(scheme.replace('O', ''))} and a kind"
            )
    follows = [
        [
            (b in continues and a in "BI" and kind_a == kind_b) or (b not in continues and a not in unfinished)
            for b, kind_b in parts
        ]
        for a, kind_a in parts
    ]
    return Constraints(
        np.array(follows, bool).reshape(len(labels), len(labels)),
        np.array([b not in continues for b, _ in parts], bool),
        np.array([a not in unfinished for a, _ in parts], bool),
    )
