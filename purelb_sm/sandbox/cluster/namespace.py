"""Network namespaces: made under a name that `ip netns` knows, entered by one thread at a time.

A socket stays in the namespace where it was opened, so one process can hold sockets in many. Entering a namespace is a
thing of the calling thread; here it is always a thread made for that one call, so that no thread of the program is ever
left in a foreign namespace.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from purelb_sm.net import pyroute

T = TypeVar("T")

NETNS_DIRECTORY = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceError(RuntimeError):
    """`ip netns` said no; the message is what it said."""


def path_of(name: str) -> Path:
    return NETNS_DIRECTORY / name


def exists(name: str) -> bool:
    return path_of(name).exists()


def create(name: str) -> None:
    """Makes a network namespace and sets its loopback up. Raises `NamespaceError`."""
    _ip_netns("add", name)
    inside(name, _loopback_up)


def remove(name: str) -> None:
    """Removes the name; the namespace ends when its last process and socket do. Gone already is no error."""
    if exists(name):
        _ip_netns("delete", name)


def inside(name: str, call: Callable[[], T]) -> T:
    """What `call` returns when it is made inside the namespace. The caller waits for it, so it must not take long."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            _enter(name)
            outcome.append(call())
        except BaseException as failed:
            failure.append(failed)

    thread = threading.Thread(target=run, name=f"in-{name}")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def socket_opener(name: str) -> Callable[[int, int, int], socket.socket]:
    """Opens sockets like `socket.socket` does, in that namespace."""

    def open_socket(family: int, kind: int, protocol: int = 0) -> socket.socket:
        return inside(name, lambda: socket.socket(family, kind, protocol))

    return open_socket


def write_setting(name: str, setting: str, value: str) -> None:
    """Sets `net.…` of the namespace, given as in sysctl.conf with slashes: `net/ipv4/ip_forward`."""
    inside(name, lambda: Path("/proc/sys", setting).write_text(value))


def identity(path: Path) -> int | None:
    """The inode by which two names of one namespace are known as the same; None when there is none (any more)."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def processes_in(name: str) -> list[int]:
    """The ids of all processes in the namespace, as `ip netns pids` lists them."""
    inode = identity(path_of(name))
    if inode is None:
        return []
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in numbers if identity(Path(f"/proc/{pid}/ns/net")) == inode]


def _ip_netns(*words: str) -> None:
    done = subprocess.run(["ip", "netns", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NamespaceError(done.stderr.strip() or f"ip netns {' '.join(words)}: exit status {done.returncode}")


def _enter(name: str) -> None:
    descriptor = os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path_of(name)))
    finally:
        os.close(descriptor)


def _loopback_up() -> None:
    with closing(pyroute.Socket()) as sock:
        sock.set_up(1)
