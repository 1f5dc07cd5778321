"""Readers of data and writers of results as arrays; every error in data is a `DataError` of one line.

The names in `__init__.pyi` are loaded when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
