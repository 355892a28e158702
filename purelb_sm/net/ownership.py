"""Which of a node's addresses are ours.

The kernel can keep a protocol number with each address (IFA_PROTO, since 5.18): that is our mark, it lives and dies
with the address. Older kernels ignore the attribute; there, a journal of our own says it. The journal is written and
synced before an address is added and after one is removed, so that a kill at any point leaves at most an entry without
an address, never an address of ours that we would take for a foreign one.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

import structlog

from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.model import IPAddress

log = structlog.get_logger(__name__)

# Not assigned to anybody in iproute2's rt_addrprotos; 0 to 3 are the kernel's.
ADDRESS_PROTOCOL = 77
JOURNAL_DIRECTORY = Path("/run/purelb")

_IFA_PROTO = 11
_SIOCGSKNS = 0x894C

Key = tuple[str, IPAddress, int]  # interface, address, prefix length


class Ownership(Protocol):
    """How we know our addresses again."""

    def attributes(self) -> bytes:
        """What a request to add an address carries for it."""
        ...

    def is_mine(self, key: Key, protocol: int) -> bool: ...

    def may_be_mine(self, address: IPAddress, prefix_length: int, protocol: int) -> bool:
        """Whether it is mine on some interface: what can be said before one knows on which it is."""
        ...

    def intend(self, keys: Iterable[Key]) -> None:
        """Called before the addresses are added."""
        ...

    def forget(self, keys: Iterable[Key]) -> None:
        """Called after the addresses were removed, or could not be added."""
        ...


class KernelMark:
    """The kernel keeps the mark."""

    def __init__(self, protocol: int = ADDRESS_PROTOCOL) -> None:
        self.protocol = protocol

    def attributes(self) -> bytes:
        return nl.attribute(_IFA_PROTO, bytes([self.protocol]))

    def is_mine(self, key: Key, protocol: int) -> bool:
        return protocol == self.protocol

    def may_be_mine(self, address: IPAddress, prefix_length: int, protocol: int) -> bool:
        return protocol == self.protocol

    def intend(self, keys: Iterable[Key]) -> None:
        """Nothing to note: the mark comes with the address."""

    def forget(self, keys: Iterable[Key]) -> None:
        """Nothing to note: the mark went with the address."""


class Journal:
    """A file says which addresses are ours, for kernels that cannot.

    One file for each network namespace. Entries of an earlier boot are void: the addresses they speak of are gone,
    and what is there now under the same address would be somebody else's. For the same reason an entry whose address
    the kernel no longer has is dropped when the journal is opened.
    """

    def __init__(self, path: Path, boot: str) -> None:
        self.path = path
        self._boot = boot
        self._keep(self._read())

    def attributes(self) -> bytes:
        return b""

    def is_mine(self, key: Key, protocol: int) -> bool:
        return key in self._keys

    def may_be_mine(self, address: IPAddress, prefix_length: int, protocol: int) -> bool:
        return (address, prefix_length) in self._anywhere

    def intend(self, keys: Iterable[Key]) -> None:
        self._change(self._keys | set(keys))

    def forget(self, keys: Iterable[Key]) -> None:
        self._change(self._keys - set(keys))

    def keep_only(self, present: Iterable[Key]) -> None:
        """Drops the entries whose address the kernel does not have."""
        self._change(self._keys & set(present))

    def _change(self, keys: set[Key]) -> None:
        if keys == self._keys:
            return
        self._write(keys)
        self._keep(keys)

    def _keep(self, keys: set[Key]) -> None:
        self._keys = keys
        self._anywhere = {(address, length) for _interface, address, length in keys}

    def _read(self) -> set[Key]:
        try:
            content = json.loads(self.path.read_bytes())
            if content["boot"] != self._boot:
                return set()
            return {(str(name), ip_address(address), int(length)) for name, address, length in content["addresses"]}
        except FileNotFoundError:
            return set()
        except (ValueError, KeyError, TypeError) as broken:
            # Without it no address counts as ours, so nothing of anybody's is removed; ours must go by hand.
            log.error("address journal unreadable", path=str(self.path), error=str(broken))
            return set()

    def _write(self, keys: set[Key]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = sorted([name, str(address), length] for name, address, length in keys)
        fresh = self.path.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump({"boot": self._boot, "addresses": rows}, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def open_journal(sock: nl.RtnlSocket, directory: Path = JOURNAL_DIRECTORY) -> Journal:
    """The journal of the network namespace that the socket is in, as this boot of the machine has it."""
    namespace = fcntl.ioctl(sock.socket, _SIOCGSKNS)
    try:
        inode = os.fstat(namespace).st_ino
    finally:
        os.close(namespace)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Journal(directory / f"addresses-{inode}.json", boot)
