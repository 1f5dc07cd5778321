"""The words of the field, and none that lnz made up: README, docs, the changelog's unreleased part, and every string and comment of the source.

Code between backticks, in fenced blocks and in examples of docstrings is left out: identifiers are code, sentences are messages.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import lnz

ROOT = Path(__file__).parents[1]
SOURCE = Path(lnz.__file__).parent

# A pattern (whole words, in any case), and what to write instead.
BANNED = {
    r"cannot serve": "does not support",
    r"dear(er|est|ly)?": "expensive",
    r"datum": "observation, example",
    r"scout(s|ed|ing)?": "mode probes",
    r"laws?": "distribution",
    r"limits?": "bound",
    r"(is|are|was|were) no": "is not a, conflict, invalid, must be",
    r"may not have": "must not have",
    r"heard|heard and said": "incoming and outgoing messages",
    r"how it is known": "guarantee",
    r"(is|are) taken": "is computed, is used",
    r"mend(s|ed|ing)?": "fix",
    r"(stand|stands|stood) still": "are stuck, have converged",
    r"at hand": "available, known",
    r"whole numbers?": "integer",
    r"thrown": "raised, reflected, discarded",
}

# Where these words are the right ones.
ALLOWED = [
    r"(power|Moore's|Amdahl's|scaling|conservation) laws?",
    r"law of large numbers",
    r"(time|memory|rate|size|step|recursion) limits?",
    r"(in|to) the limit",
    r"thermodynamic limit",
    r"limit theorems?",
    r"there (is|are|was|were) no",
    r"(is|are|was|were) no (longer|more|less|fewer|larger|smaller|better|worse|doubt)",
    r"(is|are) (already )?taken (from|by|over|away|up|out|into account|together)",
]


def without_code(text: str) -> str:
    """Prose alone: no fenced blocks, no code between backticks, no examples and no links' addresses."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^\s*(>>>|\.\.\.).*$", "", text, flags=re.MULTILINE)
    return re.sub(r"``.*?``|`[^`\n]*`|\]\([^)]*\)", "…", text)


def words_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string and comment of a Python file, f-strings with their gaps."""
    gaps: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            gaps |= {id(part) for part in node.values}
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in gaps:
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@functools.cache
def parts() -> dict[str, list[Path]]:
    """The documents, and the rooms of the source."""
    found = {str(path.relative_to(ROOT)): [path] for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
    found["CHANGELOG.md"] = [ROOT / "CHANGELOG.md"]
    for path in sorted(SOURCE.rglob("*.py")):
        room = path.relative_to(SOURCE).parts[0]
        found.setdefault(f"lnz/{room}", []).append(path)
    return found


def banned(text: str) -> list[tuple[str, str]]:
    """The banned words of a text, each with what to write instead."""
    text = re.sub(r"\s+", " ", without_code(text))
    for phrase in ALLOWED:
        text = re.sub(rf"(?i)\b{phrase}\b", "…", text)
    return [
        (match[0], better)
        for pattern, better in BANNED.items()
        for match in re.finditer(rf"(?i)\b(?:{pattern})\b", text)
    ]


def complaints(path: Path) -> list[str]:
    text = path.read_text()
    if path.name == "CHANGELOG.md":
        text = re.split(r"^## (?!Unreleased)", text, maxsplit=1, flags=re.MULTILINE)[0]
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    passages = words_of(text) if path.suffix == ".py" else enumerate(paragraphs(text), start=1)
    return [
        f"{name}:{line}: {word!r}: write {better}" for line, passage in passages for word, better in banned(passage)
    ]


def paragraphs(text: str) -> list[str]:
    """Lines, with fenced blocks emptied so that they keep their numbers."""
    return re.sub(r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE).split("\n")


@pytest.mark.parametrize("part", parts())
def test_words(part):
    found = [complaint for path in parts()[part] for complaint in complaints(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Elimination cannot serve Ising.", ["cannot serve"]),
        ("The law of the chains is that of a Power Law.", ["law"]),
        ("The time limit is kept, and so is `limit`; but the upper\nlimit is not.", ["limit"]),
        ("It is no longer there, and there is no other: it is no array.", ["is no"]),
        ("A whole\nnumber is thrown.", ["whole number", "thrown"]),
        ("```python\nlimit = 1\n```\n>>> law\nThe limit_value of lawful recommendations.", []),
    ],
)
def test_banned_words_are_seen(text, words):
    assert sorted(word for word, _ in banned(text)) == sorted(words)


def test_strings_and_comments_are_read():
    source = 'def f(x):\n    """One datum."""\n    # its law\n    raise ValueError(f"{x} is no {x}" "thrown")\n'
    assert sorted(word for _, text in words_of(source) for word, _ in banned(text)) == [
        "datum",
        "is no",
        "law",
        "thrown",
    ]
