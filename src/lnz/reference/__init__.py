"""Models whose log Z is known exactly, computed without the rest of the library: ground truth for tests and users.

Computed with NumPy and SciPy alone, in float64 and Python integers; natural logarithms; p ∝ exp(-E). `VALUES` lists known
figures with the functions that compute them; `lnz.reference.reference_models` has the models as energies.

Example:
    >>> from lnz import reference
    >>> entry = reference.named("A1-16x16")
    >>> abs(entry.compute() - entry.value) <= entry.tolerance
    True
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
