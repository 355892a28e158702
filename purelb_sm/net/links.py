"""Interfaces: what there is, which one the default route uses, and the interface for remote addresses."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable

from purelb_sm.net import pyroute
from purelb_sm.net.errors import InterfaceMissing, InterfaceUnsuitable, KernelRefused
from purelb_sm.net.model import Interface

# A dummy link is meant for this; a bridge without ports behaves alike and is there on kernels built without dummies.
DUMMY_KINDS = ("dummy", "bridge")


def interfaces(sock: pyroute.Socket) -> list[Interface]:
    """All interfaces, in index order."""
    return sorted(sock.links(), key=lambda one: one.index)


def name_of(sock: pyroute.Socket, index: int) -> str | None:
    """The name of the interface with that index, in the namespace of the socket; None when it is gone."""
    link = sock.link(index)
    return None if link is None else link.name


def index_of(sock: pyroute.Socket, name: str) -> int | None:
    """The index of the interface with that name, in the namespace of the socket; None when there is none."""
    link = sock.link(name)
    return None if link is None else link.index


def matching(candidates: Iterable[Interface], pattern: re.Pattern[str]) -> list[Interface]:
    """The interfaces whose name the pattern finds (anywhere in the name, as PureLB's `localInterface`), without
    those that have no Ethernet address, as the loopback."""
    return [one for one in candidates if one.mac is not None and pattern.search(one.name)]


def ensure_dummy(sock: pyroute.Socket, name: str) -> str:
    """Makes the interface for remote addresses if it is missing, sets it up, and returns its kind.

    Raises `InterfaceUnsuitable` when the name belongs to a link of another kind.
    """
    link = sock.link(name) or _create(sock, name)
    if link.kind not in DUMMY_KINDS:
        raise InterfaceUnsuitable(name, f"is of kind {link.kind or 'device'}, not {' or '.join(DUMMY_KINDS)}")
    if link.kind == "bridge" and any(other.master == link.index for other in sock.links()):
        raise InterfaceUnsuitable(name, "is a bridge that has ports")
    promote_secondaries(sock, link.index)
    if link.kind == "bridge" and not link.noarp:
        # As a dummy link is from the beginning. Otherwise the kernel joins a multicast group for each IPv6 address and
        # looks through all groups for that: 10,000 addresses take it a minute and a half instead of two seconds.
        sock.set_noarp(link.index)
    if not link.up:
        sock.set_up(link.index)
    return link.kind


def promote_secondaries(sock: pyroute.Socket, index: int) -> bool:
    """Has the next IPv4 address of a subnet take over when its first is removed; True when that is new.

    Otherwise (the kernel's default) the kernel removes all the others of that subnet too: see `net.addresses`.
    """
    if sock.promotes_secondaries(index):
        return False
    sock.promote_secondaries(index)
    return True


def _create(sock: pyroute.Socket, name: str) -> Interface:
    if not 0 < len(name.encode()) < 16:
        raise InterfaceUnsuitable(name, "has a name that the kernel does not take (1 to 15 bytes)")
    for kind in DUMMY_KINDS:
        try:
            sock.create_link(name, kind)
        except KernelRefused as refused:
            if refused.errno == errno.EOPNOTSUPP:
                continue
            if refused.errno != errno.EEXIST:
                raise
        made = sock.link(name)
        if made is None:
            raise InterfaceMissing(name)
        return made
    raise InterfaceUnsuitable(name, f"cannot be made: the kernel has none of the kinds {', '.join(DUMMY_KINDS)}")
