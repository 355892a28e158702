"""The one door to pyroute2: links, in words of our own. No message of the library's stays.

Addresses, routes and notices do not come this way: they are too many for the time it takes (see `rtnetlink`).

What one must know of pyroute2 0.9 to change anything here:
* It is given a socket that we opened (`use_socket`), so that the caller decides in which network namespace; its own
  `netns` would fork the process for that. The socket must be SOCK_DGRAM and non-blocking, and has the options that we
  set, not those of the library's arguments.
* A dump that a change interrupted is not reported; the flag in the messages is looked at here.
* `link("get")` and `link_lookup` ask for an acknowledgement that nobody fetches: it stays in memory for good.
* Once its socket has had an error the object answers nothing more, and a new one is needed.
* A message and each of its attributes refer to themselves (`chain`). Left to the garbage collector, those of 100 links
  lie about in 10 MiB; so they are let go of here.
* A message class made from another one keeps that one's attributes, so ours are made from `nlmsg`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from pyroute2.iproute.linux import AsyncIPRoute
from pyroute2.netlink import (
    NLA_F_NESTED,
    NLM_F_ACK,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    nla,
    nlmsg,
    rtnl,
)
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from purelb_sm.net.errors import DumpInterrupted, InterfaceMissing, NetError, from_errno
from purelb_sm.net.model import Interface
from purelb_sm.net.rtnetlink import OpenSocket

T = TypeVar("T")
Message = Any
"""A dictionary of the fixed fields, whose `get` also finds attributes: by name, or by path when nested."""

_SOL_NETLINK, _NETLINK_EXT_ACK = 270, 11
_DUMP_TRIES = 20
# The kernel answers at once or not at all. This only keeps a lost answer from hanging us for ever.
_ANSWER_TIMEOUT_S = 10.0
_IFF_UP, _IFF_NOARP, _IFF_LOWER_UP = 0x1, 0x80, 0x10000
_ARPHRD_ETHER = 1
_RTEXT_FILTER_SKIP_STATS = 8
_RT_TABLE_MAIN, _RTN_UNICAST = 254, 1


class Socket:
    """Asks and changes links. It blocks, so it is for threads in which no event loop runs; the one
    that made it uses and closes it.

    Every method raises the named error for what the kernel answered.
    """

    def __init__(self, open_socket: OpenSocket = socket.socket) -> None:
        self._open_socket = open_socket
        self._loop = asyncio.Runner()
        self._use(_open_socket(open_socket))

    def close(self) -> None:
        self._routes.close()
        self._socket.close()
        self._loop.close()

    def links(self) -> list[Interface]:
        """All interfaces, in the kernel's order."""
        everything = complete(lambda: self._routes.link("dump", ext_mask=_RTEXT_FILTER_SKIP_STATS), _interface)
        return self._ask("", everything)

    def link(self, which: int | str) -> Interface | None:
        """The interface with this index or name; None when there is none."""
        return self._link(which, _interface)

    def create_link(self, name: str, kind: str) -> None:
        """Raises `KernelRefused` with EEXIST, or with EOPNOTSUPP where the kernel has no links of that kind."""
        self._ask(name, self._routes.link("add", ifname=os.fsencode(name), kind=kind))

    def set_up(self, index: int) -> None:
        """`ip link set up`."""
        self._ask(f"#{index}", self._routes.link("set", index=index, state="up"))

    def set_noarp(self, index: int) -> None:
        """`ip link set arp off`."""
        self._ask(f"#{index}", self._routes.link("set", index=index, flags=_IFF_NOARP, change=_IFF_NOARP))

    def promotes_secondaries(self, index: int) -> bool:
        """The interface's own setting (the namespace-wide one is ored to it by the kernel)."""
        setting = ("af_spec", "AF_INET", "promote_secondaries")
        return self._link(index, lambda message: bool(message.get(setting))) or False

    def promote_secondaries(self, index: int) -> None:
        """Switches it on. Over netlink, since /proc/sys is read-only in most containers."""
        self._ask(f"#{index}", self._promote_secondaries(index))

    async def _promote_secondaries(self, index: int) -> None:
        request = _PromoteSecondaries()
        request["index"] = index
        setting: Any = 1
        for name in ("PROMOTE_SECONDARIES", "IFLA_INET_CONF", "AF_INET", "IFLA_AF_SPEC"):
            setting = {"attrs": [(name, setting)]}
        request["attrs"] = setting["attrs"]
        async for _ in await self._routes.nlm_request(request, rtnl.RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK):
            """The acknowledgement; a refusal is raised."""

    def _link(self, which: int | str, convert: Callable[[Message], T]) -> T | None:
        if isinstance(which, str) and not 0 < len(os.fsencode(which)) < 16:
            return None
        query = {"index": which} if isinstance(which, int) else {"ifname": os.fsencode(which)}
        # Not "get": see above.
        how = (rtnl.RTM_GETLINK, NLM_F_REQUEST)
        try:
            found = self._ask("", self._routes.link(how, ext_mask=_RTEXT_FILTER_SKIP_STATS, **query))
        except InterfaceMissing:
            return None
        return _taken(found[0], convert)

    def _ask(self, interface: str, question: Coroutine[Any, Any, T]) -> T:
        try:
            return self._loop.run(_in_time(question))
        except NetlinkError as refused:
            raise _named(refused, interface) from refused
        except OSError as broken:
            # If none can be had now, the next question fails like this one, and it is tried again.
            with suppress(OSError):
                self._renew()
            raise _no_answer(broken) from broken

    def _renew(self) -> None:
        fresh = _open_socket(self._open_socket)
        self._routes.close()
        self._socket.close()
        self._use(fresh)

    def _use(self, opened: socket.socket) -> None:
        self._socket = opened
        self._routes = AsyncIPRoute(use_socket=opened)


async def _in_time(question: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout(_ANSWER_TIMEOUT_S):
        return await question


async def complete(dump: Callable[[], Awaitable[AsyncIterable[Message]]], convert: Callable[[Message], T]) -> list[T]:
    """What a dump says that no change interrupted; it is made again until it is one.

    Raises `DumpInterrupted` when every one of many was (kernel documentation: userspace-api/netlink/intro, section
    "Dump consistency").
    """
    for _ in range(_DUMP_TRIES):
        found, interrupted = [], False
        try:
            async for message in await dump():
                interrupted |= bool(message["header"]["flags"] & NLM_F_DUMP_INTR)
                found.append(_taken(message, convert))
        except NetlinkDumpInterrupted:
            continue
        if not interrupted:
            return found
    raise DumpInterrupted(f"the kernel's table changed during each of {_DUMP_TRIES} dumps")


class _PromoteSecondaries(nlmsg):  # type: ignore[misc]
    """A request about one IPv4 setting of a link. The library reads these settings and cannot write them: they come
    as an array and go as attributes, numbered as in linux/ip.h (IPV4_DEVCONF_…)."""

    fields = ifinfmsg.fields
    nla_map = ((26, "IFLA_AF_SPEC", "families"),)

    class families(nla):  # type: ignore[misc]  # noqa: N801
        nla_flags = NLA_F_NESTED
        nla_map = ((socket.AF_INET, "AF_INET", "inet"),)

        class inet(nla):  # type: ignore[misc]  # noqa: N801
            nla_flags = NLA_F_NESTED
            nla_map = ((1, "IFLA_INET_CONF", "settings"),)

            class settings(nla):  # type: ignore[misc]  # noqa: N801
                nla_flags = NLA_F_NESTED
                nla_map = ((20, "PROMOTE_SECONDARIES", "uint32"),)


def _open_socket(open_socket: OpenSocket) -> socket.socket:
    opened = open_socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    opened.setblocking(False)
    opened.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
    return opened


def _taken(message: Message, convert: Callable[[Message], T]) -> T:
    taken = convert(message)
    _let_go(message)
    return taken


def _let_go(message: Message) -> None:
    message.chain.clear()
    for slot in dict.get(message, "attrs", ()):
        _let_go(slot.cell[1])


def _interface(message: Message) -> Interface:
    flags = message["flags"]
    # Of other kinds of links the library would read an address of another length as a MAC.
    mac = message.get("address") if message["ifi_type"] == _ARPHRD_ETHER else None
    return Interface(
        index=message["index"],
        name=os.fsdecode(message.get("ifname")),
        mac=None if mac is None else bytes.fromhex(mac.replace(":", "")),
        up=bool(flags & _IFF_UP),
        carrier=bool(flags & _IFF_LOWER_UP),
        kind=message.get(("linkinfo", "kind")),
        master=message.get("master"),
        noarp=bool(flags & _IFF_NOARP),
    )


def _named(refused: Any, interface: str) -> NetError:
    number, words = getattr(refused, "code", errno.EBADMSG), str(refused.args[-1])
    said_already = os.strerror(number)
    return from_errno(number, interface, "" if words == said_already else f"{said_already} ({words})")


def _no_answer(broken: OSError) -> NetError:
    return from_errno(broken.errno or errno.ETIMEDOUT, "", f"no answer from the kernel: {broken}")
