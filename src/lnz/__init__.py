"""lnz: log Z of unnormalised probabilistic models, its gradient, and how sure we are.

The names below are loaded when they are first used, so that `import lnz` does not wait for JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
