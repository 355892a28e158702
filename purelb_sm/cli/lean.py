"""Imports no more than is needed: an agent runs on every node, and its memory is the users'; and traffic may wait for a
start, which is nearly all imports.

Two of our dependencies import, in their `__init__`, much that an agent never uses: the synchronous half of the
Kubernetes client (7 MiB), and a database and twenty kinds of sockets (6 MiB).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any


def postpone_init(package: str) -> None:
    """Lets submodules of `package` be imported without running its `__init__`; that is run when first a name is asked
    for that is no submodule. Does nothing where the package is imported already, or missing."""
    spec = None if package in sys.modules else find_spec(package)
    if spec is None or spec.loader is None:
        return
    loader, module = spec.loader, module_from_spec(spec)

    def complete(name: str) -> Any:
        """What PEP 562 calls for a name that the module has not."""
        if name.startswith("__"):
            raise AttributeError(name)
        inner = f"{package}.{name}"
        if inner in sys.modules or find_spec(inner) is not None:
            return import_module(inner)
        del module.__dict__["__getattr__"]
        loader.exec_module(module)
        return getattr(module, name)

    module.__dict__["__getattr__"] = complete
    sys.modules[package] = module


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """As if `package` were not installed, for what is imported meanwhile. Does nothing where it is imported already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # "not there", for the import statement
    try:
        yield
    finally:
        del sys.modules[package]


GARBAGE = 20_000
"""The collector looks after so many new objects, not 700: a batch of Services makes more, which all go by themselves,
and a seventh of its time went into looking at them."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Around imports: they make no garbage, and a sixth of their time would go into looking for some. What is there at
    the end stays, and is not looked at again; from then on the collector runs less often."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(GARBAGE)
        gc.enable()
