"""lnz: log Z of unnormalised probabilistic models, its gradient, and how sure we are.

The names below are loaded when they are first used, so that `import lnz` does not wait for JAX.
"""

from typing import Any

import lazy_loader

from lnz._moved import MOVED, moved

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.2.0.dev0"


def __getattr__(name: str) -> Any:
    return moved(name) if name in MOVED else _load(name)
