"""What the tests in network namespaces share."""

from __future__ import annotations

import os
import subprocess
from functools import cache

from purelb_sm.sandbox.cluster import namespace


@cache
def why_no_namespaces() -> str | None:
    """Why this machine does not let us make network namespaces; None when it does."""
    name = f"t{os.getpid()}-probe"
    try:
        namespace.create(name)
    except OSError as refused:
        return f"cannot make network namespaces here: {refused}"
    namespace.remove(name)
    return None


def ip(name: str, *words: str) -> str:
    """What `ip -n NAMESPACE …` prints."""
    done = subprocess.run(["ip", "-n", name, *words], capture_output=True, text=True, check=True)
    return done.stdout
