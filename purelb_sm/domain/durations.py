"""Durations as Kubernetes users write them: Go's `time.ParseDuration` syntax (`5m`, `1h30m`, `0s`)."""

from __future__ import annotations

import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")


def parse_duration_s(text: str) -> float:
    """Seconds. Raises ValueError for anything but a non-negative duration; a bare `0` is allowed, as in Go."""
    if text == "0":
        return 0.0
    total, position = 0.0, 0
    for match in _PART.finditer(text):
        if match.start() != position:
            break
        total += float(match[1]) * _UNITS[match[2]]
        position = match.end()
    if not text or position != len(text):
        raise ValueError("is not a duration such as 5m or 90s")
    return total
