"""What the Services of a namespace hold of certain groups: the leader's quotas are learned from it (spec A30)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import bindparam, func, select

from purelb_sm.domain.quota import HeldIn
from purelb_sm.models import Allocation, Membership, Service, table
from purelb_sm.store import loading
from purelb_sm.store.workspace import Workspace

_A, _M, _S = table(Allocation), table(Membership), table(Service)
_NAMESPACES: Any = bindparam("namespaces", expanding=True)
_GROUPS: Any = bindparam("groups", expanding=True)

_HELD_IN = (
    select(_S.c.namespace, _A.c.group_name, _A.c.address, func.count().label("members"))
    .select_from(_S)
    .join(_M, (_M.c.service_number == _S.c.number) & _M.c.until_at.is_(None))
    .join(_A, _A.c.id == _M.c.allocation_id)
    .where(
        _S.c.cluster == bindparam("cluster"),
        _S.c.namespace.in_(_NAMESPACES),
        loading.LIVE,
        _A.c.group_name.in_(_GROUPS),
    )
    .group_by(_S.c.namespace, _A.c.group_name, _A.c.address)
)


def held_in(ws: Workspace, namespaces: Collection[str], groups: Iterable[str]) -> list[HeldIn]:
    """Every address of these groups that a Service of these namespaces has, once a namespace."""
    ws.flush()
    found: list[HeldIn] = []
    for some in loading.chunks(namespaces):
        values = {"cluster": ws.cluster, "namespaces": some, "groups": sorted(groups)}
        found += [HeldIn(r.namespace, r.group_name, r.address, int(r.members)) for r in ws.db.rows(_HELD_IN, values)]
    return found
