"""Small facts about objects that every part needs: the JSON type, paths, times, names."""

from __future__ import annotations

import functools
import random
import time
import uuid
from collections.abc import Iterable
from typing import Any

JSON = dict[str, Any]

# Without vowels and the digits that look like letters, so that no word comes out: apimachinery's `rand.String`.
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


def dig(obj: Any, path: Iterable[str]) -> Any:
    """The value at a path of keys, or None."""
    for part in path:
        if not isinstance(obj, dict):
            return None
        obj = obj.get(part)
    return obj


def now() -> str:
    """The time as metav1.Time prints it: UTC, whole seconds."""
    return _printed(int(time.time()))


@functools.lru_cache(4)
def _printed(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def new_uid() -> str:
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


def generated(prefix: str) -> str:
    """A name from `metadata.generateName`: the prefix, cut to 58 characters, and five random ones."""
    return prefix[:58] + "".join(random.choices(_ALPHABET, k=5))


def group_version(group: str, version: str) -> str:
    return f"{group}/{version}" if group else version
