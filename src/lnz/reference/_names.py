"""The names of the models, known without JAX, so that others are refused at once."""

from collections.abc import Iterable

_LISTED = """
torus-4x4-hot torus-4x4-critical torus-8x8-hot torus-8x8-critical torus-8x8-cold torus-16x16-hot torus-16x16-critical
torus-16x16-cold torus-64x64-critical planted-8x8 planted-16x16 glass-10x10 glass-32x32 potts-3-4x4 potts-4-5x5
hard-squares-6x6 colourings-4x4 ring-20 complete-50 sherrington-kirkpatrick-12
rbm-30x8 rbm-patterns-24x6 rbm-two-modes-24x6 rbm-hidden-mode-40x8 needle-40
gaussian-20 field-free-64 field-quartic-64 many-well-2 many-well-32 shells-2 shells-5 shells-10 shells-30 shells-100
eggbox rosenbrock rosenbrock-box binomial funnel-10 mixture-40 apart-2 student-10
"""
NAMES = tuple(_LISTED.split())


def check_names(names: Iterable[str]) -> None:
    """Raise ValueError unless all are names of models."""
    for name in names:
        if name not in NAMES:
            raise ValueError(f"no reference model {name!r}: there are {', '.join(NAMES)}")
