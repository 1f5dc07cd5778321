"""Layers, energies and losses for PyTorch users: PyTorch is imported when one of them is first used."""

from typing import Any

import lazy_loader

from lnz._core.packages import package

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name in __all__:
        package("torch", "lnz.torch")
    return _load(name)
