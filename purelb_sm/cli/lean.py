"""Imports parts of a package without the whole: an agent runs on every node, and its memory is the users'.

Two of our dependencies import, in their `__init__`, much that an agent never uses: the synchronous half of the
Kubernetes client (7 MiB), and a database and twenty kinds of sockets (6 MiB).
"""

from __future__ import annotations

import sys
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
