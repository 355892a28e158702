"""Shared addresses as the book has them: for the leader's index of them, and for who joins one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import bindparam, select

from purelb_sm.domain.book import Join, Plan
from purelb_sm.domain.sharing import Member, SharedAddress
from purelb_sm.domain.views import PortKey, ServiceKey
from purelb_sm.models import Allocation, Membership, PortClaim, Service, table
from purelb_sm.store import loading
from purelb_sm.store.workspace import Workspace

_A, _M, _P, _S = table(Allocation), table(Membership), table(PortClaim), table(Service)

_SHARED = select(_A.c.id, _A.c.address, _A.c.group_name, _A.c.sharing_key, _A.c.claim).where(
    loading.NOT_RELEASED, _A.c.sharing_key.is_not(None)
)
_IDS: Any = bindparam("ids", expanding=True)
_MEMBERS = (
    select(_M.c.allocation_id, _M.c.service_uid, _S.c.namespace, _S.c.name)
    .join(_S, _S.c.uid == _M.c.service_uid)
    .where(_M.c.allocation_id.in_(_IDS), _M.c.until_at.is_(None))
    .order_by(_M.c.id)
)
_PORTS = select(_P.c.allocation_id, _P.c.service_uid, _P.c.protocol, _P.c.port).where(
    _P.c.allocation_id.in_(_IDS), _P.c.until_at.is_(None)
)


def expect(ws: Workspace, plans: Iterable[Plan]) -> None:
    """Loads the allocations that these plans join, but for those that one of them holds first."""
    wanted = dict.fromkeys(a.address for plan in plans for a in plan.actions if isinstance(a, Join))
    if wanted:
        ws.flush()
        ws.by_address.update(loading.load_by_address(ws, wanted))


def shared(ws: Workspace) -> list[SharedAddress]:
    """All of them, with all members and ports: read when a leader's index is built, not when it is used."""
    ws.flush()
    found: list[SharedAddress] = []
    for rows in loading.chunks(ws.db.rows(_SHARED)):
        ids = [row.id for row in rows]
        ports = _ports(ws, ids)
        members: dict[int, list[Member]] = {}
        for row in ws.db.rows(_MEMBERS, {"ids": ids}):
            has = frozenset(ports.get((row.allocation_id, row.service_uid), ()))
            key = ServiceKey(row.namespace, row.name)
            members.setdefault(row.allocation_id, []).append(Member(row.service_uid, key, has))
        found += [_shared_address(row, members.get(row.id, ())) for row in rows]
    return sorted(found, key=lambda one: (one.address.version, int(one.address)))


def _ports(ws: Workspace, ids: list[int]) -> dict[tuple[int, str], set[PortKey]]:
    found: dict[tuple[int, str], set[PortKey]] = {}
    for row in ws.db.rows(_PORTS, {"ids": ids}):
        found.setdefault((row.allocation_id, row.service_uid), set()).add((row.protocol, row.port))
    return found


def _shared_address(row: Any, members: Iterable[Member]) -> SharedAddress:
    namespace, _, name = row.claim.partition("/")
    return SharedAddress(row.address, row.group_name, row.sharing_key, ServiceKey(namespace, name), tuple(members))
