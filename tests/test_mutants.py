"""The table of faults is of today's code: what a row replaces stands there once, so that the fault can be planted."""

from mutants import MUTANTS, ROOT


def test_every_fault_can_be_planted():
    lost = [m.meaning for m in MUTANTS if (ROOT / "src" / "lnz" / m.file).read_text().count(m.before) != 1]
    assert not lost
