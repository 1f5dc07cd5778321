"""What an energy may offer beyond `space` and `__call__`, as classes to inherit from. The names load when they are first used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
