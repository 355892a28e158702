"""The MACs by which a node's frames are known: what its agent says in its Lease, annotation `purelb.io/macs`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

MAX_MACS: Final = 64
"""More of one node are neither told nor read: a node's Lease must not be able to fill the memory of the others."""
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def render_macs(macs: Iterable[bytes]) -> str:
    """In the order given; equal MACs once."""
    return ",".join([mac.hex(":") for mac in dict.fromkeys(macs)][:MAX_MACS])


def parse_macs(text: str) -> frozenset[bytes]:
    """A part that is no MAC is passed over, as is a multicast one: nobody sends from that."""
    parts = (part.strip().lower() for part in text.split(",", MAX_MACS)[:MAX_MACS])
    found = (bytes.fromhex(part.replace(":", "")) for part in parts if _MAC.fullmatch(part))
    return frozenset(mac for mac in found if not mac[0] & 1)
