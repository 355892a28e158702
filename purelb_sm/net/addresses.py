"""The kernel's address table: what is there, what of it is ours, and changing ours, many at a time.

Invariants:
* An address that is on the interface and does not carry our mark is neither changed nor removed. A replace would move
  the mark over without a word, so a new address is always asked for exclusively.
* What we renew stays: a renewal never passes through "removed".
* Where our IPv4 addresses are, secondaries are promoted. Otherwise the kernel removes, with the first address of a
  subnet, all the others of that subnet on the interface, the node's own included.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from purelb_sm.net import links, pyroute, rows
from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.errors import ForeignAddress, InterfaceMissing, NetError, from_errno
from purelb_sm.net.model import Held, IPAddress, Wanted
from purelb_sm.net.ownership import Key, Ownership

log = structlog.get_logger(__name__)

Row = tuple[int, IPAddress, int]
"""Interface index, address, prefix length: what the kernel knows an address by."""
Shape = tuple[bool, bool]
"""Without a route for its prefix, permanent."""

FEW = 16
"""So many addresses are looked for in the bytes of a table, before a row of it is read."""

# Gone already, or gone with its interface: what a removal wants is so.
_GONE = (errno.EADDRNOTAVAIL, errno.ENODEV)


def entries(sock: nl.RtnlSocket) -> list[rows.Entry]:
    """The whole table, both families, all interfaces, for who reads it once."""
    return rows.Reader().read(_dump(sock))


def _dump(sock: nl.RtnlSocket, index: int = 0) -> list[bytes]:
    """Of the interface with this index, where the kernel can tell them apart, or of all."""
    messages = sock.dump(nl.RTM_GETADDR, rows.IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, index))
    return [body for kind, _flags, body in messages if kind == nl.RTM_NEWADDR]


def add_request(wanted: Wanted, index: int, mark: bytes, *, renew: bool) -> nl.Request:
    """Adds an address that must not be there (EEXIST), or with `renew` changes the lifetime of one that is."""
    flags = (rows.IFA_F_NOPREFIXROUTE if wanted.noprefixroute else 0) | (rows.IFA_F_NODAD if wanted.nodad else 0)
    lifetime = rows.INFINITE if wanted.lifetime_s is None else wanted.lifetime_s
    preferred = lifetime if wanted.preferred_s is None else wanted.preferred_s
    body = _identity(wanted.address, wanted.prefix_length, index)
    body += nl.attribute(rows.IFA_FLAGS, struct.pack("=I", flags))
    body += nl.attribute(rows.IFA_CACHEINFO, struct.pack("=IIII", preferred, lifetime, 0, 0)) + mark
    return nl.request(nl.RTM_NEWADDR, nl.NLM_F_CREATE | (nl.NLM_F_REPLACE if renew else nl.NLM_F_EXCL), body)


def remove_request(address: IPAddress, prefix_length: int, index: int) -> nl.Request:
    return nl.request(nl.RTM_DELADDR, 0, _identity(address, prefix_length, index))


def _identity(address: IPAddress, prefix_length: int, index: int) -> bytes:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    packed = address.packed
    header = rows.IFADDR.pack(family, prefix_length, 0, 0, index)
    return header + nl.attribute(rows.IFA_LOCAL, packed) + nl.attribute(rows.IFA_ADDRESS, packed)


@dataclass(slots=True)
class _Step:
    """A request, what it is about, and what to tell the journal when it is done. `shape` None: a removal."""

    request: nl.Request
    address: IPAddress
    key: Key
    row: Row
    shape: Shape | None
    new: bool = False

    @property
    def adds(self) -> bool:
        return self.shape is not None


@dataclass(slots=True)
class _Work:
    """What `apply` found out and will do. `answers` has an entry for each address from the beginning."""

    answers: dict[IPAddress, NetError | None]
    steps: list[_Step] = field(default_factory=list)

    def refuse(self, address: IPAddress, error: NetError) -> None:
        """The first error of an address is the one that is told."""
        if self.answers[address] is None:
            self.answers[address] = error


class AddressTable:
    """The table with our mark on it. For the one thread that made `link_sock`."""

    def __init__(self, sock: nl.RtnlSocket, link_sock: pyroute.Socket, ownership: Ownership) -> None:
        self._sock = sock
        self._link_sock = link_sock
        self._ownership = ownership
        self._promoting: set[int] = set()
        self._reader = rows.Reader()
        self._done: dict[Row, Shape | None] = {}
        self._done_before: dict[Row, Shape | None] = {}
        self._followers = 0
        self._trusted = False
        self._seen = b""
        self._acted: set[IPAddress] = set()

    def entries(self) -> list[rows.Entry]:
        """The whole table, both families, all interfaces."""
        # Before it is read: what changes meanwhile is doubted.
        self._trusted, self._acted = self._followers > 0, set()
        bodies = _dump(self._sock)
        self._seen = b"".join(bodies)
        return self._reader.read(bodies)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """While every notice is shown to `knows`, and `doubt` called where some were lost."""
        self._followers += 1
        try:
            yield
        finally:
            self._followers -= 1
            self._trusted = False

    def doubt(self) -> None:
        """Others may have changed the table since it was looked at. May be called from another thread."""
        self._trusted = False

    def on(self, index: int) -> list[rows.Entry]:
        """What is on one interface; nothing where there is none (any more)."""
        try:
            bodies = _dump(self._sock, index)
        except InterfaceMissing:
            return []
        return [entry for body in bodies if (entry := rows.entry_of(body)) and entry.index == index]

    def all(self) -> list[Held]:
        """All addresses of all interfaces, ours and foreign."""
        return self._named(self.entries())

    def held(self) -> list[Held]:
        """Our addresses."""
        # A notice of what was done before this look may still be on its way.
        self._done, self._done_before = {}, self._done
        # Only the interfaces of those are asked for: a node has one for each pod, and each costs a question.
        may_be_mine = self._ownership.may_be_mine
        found = [one for one in self.entries() if may_be_mine(one.address, one.prefix_length, one.protocol)]
        return [one for one in self._named(found) if one.mine]

    def knows(self, notice: tuple[int, bytes]) -> bool:
        """Whether a notice tells nothing new: an address of ours is as we made it, or as the last look saw it, or gone
        because we removed it. May be called from another thread than the rest."""
        known = self._knows(notice)
        if not known and notice[0] in (nl.RTM_NEWADDR, nl.RTM_DELADDR):
            self.doubt()
        return known

    def _knows(self, notice: tuple[int, bytes]) -> bool:
        kind, body = notice
        entry = rows.entry_of(body) if kind in (nl.RTM_NEWADDR, nl.RTM_DELADDR) else None
        if entry is None or not self._ownership.may_be_mine(entry.address, entry.prefix_length, entry.protocol):
            return False
        if entry.flags & (rows.IFA_F_TENTATIVE | rows.IFA_F_DADFAILED):
            return False
        row = entry.index, entry.address, entry.prefix_length
        for done in (self._done, self._done_before):
            if row in done:
                return done[row] == (_shape(entry) if kind == nl.RTM_NEWADDR else None)
        return kind == nl.RTM_NEWADDR and self._reader.knows(body)

    def _with(self, addresses: Collection[IPAddress]) -> Iterator[rows.Entry]:
        """The rows of these addresses. Of many rows, those that cannot be one of few addresses are not read."""
        if len(addresses) > FEW:
            yield from (entry for entry in self.entries() if entry.address in addresses)
            return
        packed = [address.packed for address in addresses]
        candidates = (body for body in _dump(self._sock) if any(one in body for one in packed))
        for entry in map(rows.entry_of, candidates):
            if entry is not None and entry.address in addresses:
                yield entry

    def _named(self, found: Iterable[rows.Entry]) -> list[Held]:
        names: dict[int, str | None] = {}
        return [held for entry in found if (held := self._held(entry, names)) is not None]

    def _held(self, entry: rows.Entry, names: dict[int, str | None]) -> Held | None:
        if entry.index not in names:
            names[entry.index] = links.name_of(self._link_sock, entry.index)
        name = names[entry.index]
        if name is None:  # The interface went away after the dump, and its addresses with it.
            return None
        mine = self._is_mine(entry, name)
        if entry.held is None or not _is_so(entry.held, name, mine, entry.valid_s):
            entry.held = self._told(entry, name, mine)
        # What does not change is the same object the next time: two looks at it are compared in no time.
        return entry.held

    def _told(self, entry: rows.Entry, name: str, mine: bool) -> Held:
        return Held(
            address=entry.address,
            prefix_length=entry.prefix_length,
            interface=name,
            mine=mine,
            valid_s=entry.valid_s,
            noprefixroute=entry.noprefixroute,
            tentative=bool(entry.flags & rows.IFA_F_TENTATIVE),
            duplicate=bool(entry.flags & rows.IFA_F_DADFAILED),
        )

    def _is_mine(self, entry: rows.Entry, name: str) -> bool:
        return self._ownership.is_mine((name, entry.address, entry.prefix_length), entry.protocol)

    def apply(self, add: Sequence[Wanted], remove: Sequence[Held]) -> dict[IPAddress, NetError | None]:
        """See `KernelProtocol.apply`. Additions go first, so that an address that moves from one interface to
        another is never on neither."""
        named: list[Wanted | Held] = [*add, *remove]
        addresses = {one.address for one in named}
        if remove or not self._are_new(addresses):
            return self._apply(add, remove, self._with(addresses))
        # Among ten thousand, a look at the table for each that comes would be nearly all that it costs.
        answers = self._apply(add, (), ())
        there = [wanted for wanted in add if isinstance(answers[wanted.address], ForeignAddress)]
        return answers | self._apply(there, (), self._with({one.address for one in there})) if there else answers

    def _are_new(self, addresses: Collection[IPAddress]) -> bool:
        """Whether these few are nowhere, as far as is known: the bytes of none were in the table when it was looked at,
        nor did we add it since; and of whatever else happened to the table, there has been no notice."""
        if not self._trusted or len(addresses) > FEW:
            return False
        return not any(one in self._acted or one.packed in self._seen for one in addresses)

    def _apply(
        self, add: Sequence[Wanted], remove: Sequence[Held], found: Iterable[rows.Entry]
    ) -> dict[IPAddress, NetError | None]:
        named: list[Wanted | Held] = [*add, *remove]
        work = _Work({one.address: None for one in named})
        indexes = {name: links.index_of(self._link_sock, name) for name in {one.interface for one in named}}
        table: dict[tuple[int, IPAddress], list[rows.Entry]] = defaultdict(list)
        for entry in found:
            table[entry.index, entry.address].append(entry)
        kept: set[Key] = set()
        for wanted in add:
            index = indexes[wanted.interface]
            if index is None:
                work.refuse(wanted.address, InterfaceMissing(wanted.interface))
            else:
                kept.add((wanted.interface, wanted.address, wanted.prefix_length))
                self._plan_add(work, wanted, index, table[index, wanted.address])
        for held in remove:
            index = indexes[held.interface]
            if index is not None and (held.interface, held.address, held.prefix_length) not in kept:
                self._plan_remove(work, held, index, table[index, held.address])
        self._promote({index for index in indexes.values() if index is not None}, work.answers)
        self._carry_out(work)
        return work.answers

    def _plan_add(self, work: _Work, wanted: Wanted, index: int, present: list[rows.Entry]) -> None:
        if any(not self._is_mine(entry, wanted.interface) for entry in present):
            work.refuse(wanted.address, ForeignAddress(wanted.address, wanted.interface))
            return
        renew = False
        for entry in present:
            if (entry.prefix_length, entry.noprefixroute) == (wanted.prefix_length, wanted.noprefixroute):
                renew = True
            else:
                # IPv6 knows an address once per interface, and IPv4 does not change these two: it must be made anew.
                self._step_remove(work, wanted.interface, entry)
        request = add_request(wanted, index, self._ownership.attributes(), renew=renew)
        key = (wanted.interface, wanted.address, wanted.prefix_length)
        row = (index, wanted.address, wanted.prefix_length)
        shape = (wanted.noprefixroute, wanted.lifetime_s is None)
        work.steps.append(_Step(request, wanted.address, key, row, shape, new=not renew))

    def _plan_remove(self, work: _Work, held: Held, index: int, present: list[rows.Entry]) -> None:
        for entry in present:
            if entry.prefix_length != held.prefix_length:
                continue
            if self._is_mine(entry, held.interface):
                self._step_remove(work, held.interface, entry)
            else:
                work.refuse(held.address, ForeignAddress(held.address, held.interface))

    def _step_remove(self, work: _Work, interface: str, entry: rows.Entry) -> None:
        key = (interface, entry.address, entry.prefix_length)
        request = remove_request(entry.address, entry.prefix_length, entry.index)
        row = (entry.index, entry.address, entry.prefix_length)
        work.steps.append(_Step(request, entry.address, key, row, None))

    def _carry_out(self, work: _Work) -> None:
        if not work.steps:
            return
        self._ownership.intend([step.key for step in work.steps if step.adds])
        self._acted.update(step.address for step in work.steps)
        # Before it is done: its notice may be read before its answer.
        self._done.update((step.row, step.shape) for step in work.steps)
        answers = self._sock.transact([step.request for step in work.steps])
        gone: dict[Key, bool] = {}
        for step, answer in zip(work.steps, answers, strict=True):
            failed = answer.errno != 0 and (step.adds or answer.errno not in _GONE)
            if failed:
                work.refuse(step.address, _refusal(step, answer))
                self._done.pop(step.row, None)
            # The last step about a key decides whether the journal keeps it. A failed renewal or removal leaves it.
            gone[step.key] = (failed and step.new) if step.adds else not failed
        self._ownership.forget([key for key, is_gone in gone.items() if is_gone])

    def _promote(self, indexes: Iterable[int], addresses: Iterable[IPAddress]) -> None:
        if all(address.version == 6 for address in addresses):
            return
        for index in set(indexes) - self._promoting:
            try:
                if links.promote_secondaries(self._link_sock, index):
                    log.info("promote_secondaries switched on", interface=links.name_of(self._link_sock, index))
            except NetError as failed:
                # Worth a word, not worth refusing the address: it matters only when ours is the subnet's first.
                log.warning("promote_secondaries not switched on", index=index, error=str(failed))
            self._promoting.add(index)


def _shape(entry: rows.Entry) -> Shape:
    return entry.noprefixroute, entry.valid_s is None


def _is_so(shown: Held, name: str, mine: bool, valid_s: int | None) -> bool:
    return shown.valid_s == valid_s and shown.mine == mine and shown.interface == name


def _refusal(step: _Step, answer: nl.Answer) -> NetError:
    interface = step.key[0]
    if step.new and answer.errno == errno.EEXIST:
        # It was not there when we looked: somebody else added it in between.
        return ForeignAddress(step.address, interface)
    return from_errno(answer.errno, interface, answer.detail)
