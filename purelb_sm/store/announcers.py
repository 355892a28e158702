"""Which nodes announce which Services, and since when what nobody announces is silent: a few statements for many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, select

from purelb_sm.domain.announced import Announcers, HeldAddress
from purelb_sm.domain.views import ServiceKey
from purelb_sm.models import Allocation, Announcement, Membership, table
from purelb_sm.store.loading import ANNOUNCED, CURRENT, MEMBER, OF_SERVICES, PRESENT, chunks, live_by_key
from purelb_sm.store.workspace import Workspace

_A, _M, _N = table(Allocation), table(Membership), table(Announcement)

_UIDS = OF_SERVICES & MEMBER
_HELD = (
    select(_M.c.service_uid, _M.c.from_at, _A.c.id, _A.c.address, _A.c.held_at, ANNOUNCED)
    .select_from(_M)
    .join(_A, _A.c.id == _M.c.allocation_id)
    .where(_UIDS)
    .order_by(_A.c.id)
)
_BY = (
    select(
        _M.c.service_uid,
        func.count(_N.c.node.distinct()).label("nodes"),
        func.min(_N.c.node).label("node"),
        func.min(_N.c.interface).label("interface"),
    )
    .select_from(_M)
    .join(_N, (_N.c.allocation_id == _M.c.allocation_id) & CURRENT & PRESENT)
    .where(_UIDS)
    .group_by(_M.c.service_uid)
)
_LAST = (
    select(_N.c.allocation_id, func.max(_N.c.until_at).label("at"))
    .where(_N.c.allocation_id.in_(bindparam("ids", expanding=True)), PRESENT)
    .group_by(_N.c.allocation_id)
)


def announcers(ws: Workspace, keys: Iterable[ServiceKey]) -> dict[ServiceKey, Announcers]:
    """Those of these that have an address. A few statements for a thousand of them."""
    ws.flush()
    key_of = {entry.uid: entry.key for entry in live_by_key(ws, keys)}
    found: dict[ServiceKey, Announcers] = {}
    for uids in chunks(key_of):
        held = ws.db.rows(_HELD, {"uids": uids})
        by = {row.service_uid: row for row in ws.db.rows(_BY, {"uids": uids})}
        ended = _ended(ws, [row.id for row in held if not row.announced])
        for uid, addresses in _together(held, ended).items():
            found[key_of[uid]] = _one(key_of[uid], uid, tuple(addresses), by.get(uid))
    return found


def _ended(ws: Workspace, allocation_ids: Sequence[int]) -> dict[int, datetime]:
    """When a node last ceased to announce each of these."""
    return {row.allocation_id: row.at for ids in chunks(allocation_ids) for row in ws.db.rows(_LAST, {"ids": ids})}


def _together(held: Sequence[Any], ended: dict[int, datetime]) -> dict[str, list[HeldAddress]]:
    """The addresses by the uid of their Service."""
    addresses: dict[str, list[HeldAddress]] = {}
    for row in held:
        # One that came to share an address that was silent before has waited only since then.
        since = max(row.held_at, row.from_at, ended.get(row.id, row.held_at))
        addresses.setdefault(row.service_uid, []).append(HeldAddress(row.address, None if row.announced else since))
    return addresses


def _one(key: ServiceKey, uid: str, addresses: tuple[HeldAddress, ...], by: Any | None) -> Announcers:
    if by is None:
        return Announcers(key, uid, addresses)
    return Announcers(key, uid, addresses, by.nodes, by.node, by.interface)
