"""Imports gymnax without the libraries that only its drawing needs.

Five of gymnax's environments import ``matplotlib.pyplot``, and one imports seaborn, which imports
pandas and ``scipy.stats``. That is more than half of the time of ``import ape_jax``, for functions
that training never calls. So modules stand in for them while gymnax is imported. A stand-in imports
the real module when it is first asked for anything, as by ``render`` of such an environment.

``importlib.util.LazyLoader`` cannot do this. Its modules stay in ``sys.modules``, where the second
``import`` statement that names one makes it load, and gymnax has five. Stand-ins are there only
while gymnax is imported: whoever imports matplotlib later gets matplotlib.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

DRAWING = ("matplotlib.pyplot", "seaborn")


class _StandIn(ModuleType):
    """Passes every attribute on from the real module."""

    def __getattr__(self, name: str) -> Any:
        """Import the real module, which must not find this one in its place."""
        self.withdraw()
        return getattr(importlib.import_module(self.__name__), name)

    def withdraw(self) -> None:
        """Take this module out of ``sys.modules``, if it is still there."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


@contextlib.contextmanager
def stand_ins(*names: str) -> Iterator[None]:
    """Let stand-ins take the place of modules that are not imported yet, in this context."""
    missing = [_StandIn(name) for name in names if name not in sys.modules]
    sys.modules.update({module.__name__: module for module in missing})
    try:
        yield
    finally:
        for module in missing:
            module.withdraw()


with stand_ins(*DRAWING):
    import gymnax  # noqa: F401
