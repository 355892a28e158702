"""Which nodes announce which Services, and since when what nobody announces is silent: a few statements for many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, bindparam, func, select, tuple_

from purelb_sm.domain.announced import Announcers, HeldAddress
from purelb_sm.domain.views import ServiceKey
from purelb_sm.models import Allocation, Announcement, Membership, Service, table
from purelb_sm.store.loading import ANNOUNCED, CURRENT, LIVE, MEMBER, PRESENT, chunks
from purelb_sm.store.workspace import Workspace

_S, _A, _M, _N = table(Service), table(Allocation), table(Membership), table(Announcement)

_OF: ColumnElement[bool] = (
    (_S.c.cluster == bindparam("cluster"))
    & tuple_(_S.c.namespace, _S.c.name).in_(bindparam("keys", expanding=True))
    & LIVE
)
_HELD = (
    select(_S.c.namespace, _S.c.name, _S.c.uid, _A.c.id, _A.c.address, _A.c.held_at, _M.c.from_at, ANNOUNCED)
    .join(_M, (_M.c.service_uid == _S.c.uid) & MEMBER)
    .join(_A, _A.c.id == _M.c.allocation_id)
    .where(_OF)
    .order_by(_A.c.id)
)
_BY = (
    select(
        _S.c.uid,
        func.count(_N.c.node.distinct()).label("nodes"),
        func.min(_N.c.node).label("node"),
        func.min(_N.c.interface).label("interface"),
    )
    .join(_M, (_M.c.service_uid == _S.c.uid) & MEMBER)
    .join(_N, (_N.c.allocation_id == _M.c.allocation_id) & CURRENT & PRESENT)
    .where(_OF)
    .group_by(_S.c.uid)
)
_LAST = (
    select(_N.c.allocation_id, func.max(_N.c.until_at).label("at"))
    .where(_N.c.allocation_id.in_(bindparam("ids", expanding=True)), PRESENT)
    .group_by(_N.c.allocation_id)
)


def announcers(ws: Workspace, keys: Iterable[ServiceKey]) -> dict[ServiceKey, Announcers]:
    """Those of these that have an address. Three statements for a thousand of them."""
    ws.flush()
    found: dict[ServiceKey, Announcers] = {}
    for some in chunks(keys):
        named = {"cluster": ws.cluster, "keys": [(key.namespace, key.name) for key in some]}
        held = ws.db.rows(_HELD, named)
        if held:
            by = {row.uid: row for row in ws.db.rows(_BY, named)}
            found |= _together(held, by, _ended(ws, [row.id for row in held if not row.announced]))
    return found


def _ended(ws: Workspace, allocation_ids: Sequence[int]) -> dict[int, datetime]:
    """When a node last ceased to announce each of these."""
    return {row.allocation_id: row.at for ids in chunks(allocation_ids) for row in ws.db.rows(_LAST, {"ids": ids})}


def _together(held: Sequence[Any], by: dict[str, Any], ended: dict[int, datetime]) -> dict[ServiceKey, Announcers]:
    addresses: dict[ServiceKey, list[HeldAddress]] = {}
    uids: dict[ServiceKey, str] = {}
    for row in held:
        key = ServiceKey(row.namespace, row.name)
        # One that came to share an address that was silent before has waited only since then.
        since = max(row.held_at, row.from_at, ended.get(row.id, row.held_at))
        addresses.setdefault(key, []).append(HeldAddress(row.address, None if row.announced else since))
        uids[key] = row.uid
    return {key: _one(key, uids[key], tuple(some), by.get(uids[key])) for key, some in addresses.items()}


def _one(key: ServiceKey, uid: str, addresses: tuple[HeldAddress, ...], by: Any | None) -> Announcers:
    if by is None:
        return Announcers(key, uid, addresses)
    return Announcers(key, uid, addresses, by.nodes, by.node, by.interface)
