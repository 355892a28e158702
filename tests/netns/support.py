"""What the tests in network namespaces share."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from functools import cache

from purelb_sm.sandbox.cluster import namespace


@cache
def why_no_namespaces() -> str | None:
    """Why this machine does not let us make network namespaces; None when it does."""
    name = f"t{os.getpid()}-probe"
    try:
        namespace.create(name)
    except (OSError, namespace.NamespaceError) as refused:
        return f"cannot make network namespaces here: {refused}"
    namespace.remove(name)
    return None


def ip(name: str, *words: str) -> str:
    """What `ip -n NAMESPACE …` prints."""
    done = subprocess.run(["ip", "-n", name, *words], capture_output=True, text=True, check=True)
    return done.stdout


async def until(true: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Returns as soon as it is true; raises TimeoutError when it does not become so."""
    async with asyncio.timeout(timeout_s):
        while not true():
            await asyncio.sleep(0.01)
