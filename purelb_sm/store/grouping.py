"""What the cluster last said of its groups: a new version of a row where that changed, nothing where it did not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from typing import Any

from sqlalchemy import bindparam, insert, select, update

from purelb_sm.domain.addresses import AddressRange as Range
from purelb_sm.domain.groups import Group, Pool
from purelb_sm.errors import InvalidGroup
from purelb_sm.models import AddressRange, ServiceGroup, table
from purelb_sm.store import counting
from purelb_sm.store.history import Entry, plain
from purelb_sm.store.workspace import Workspace

_G, _R = table(ServiceGroup), table(AddressRange)
_CURRENT = _G.c.until_at.is_(None)


def record_groups(ws: Workspace, accepted: Mapping[str, Group], refused: Mapping[str, InvalidGroup]) -> None:
    """Takes the groups of the cluster, all of them, into the book."""
    ws.flush()
    wanted = {name: _wanted_accepted(group) for name, group in accepted.items()}
    wanted |= {name: _wanted_refused(name, why) for name, why in refused.items()}
    pools = accepted_pools(ws)
    stored = {row.name: row for row in ws.db.rows(select(_G).where(_CURRENT))}
    same = {
        name
        for name, row in stored.items()
        if name in wanted
        and _same(wanted[name], row)
        and (name not in accepted or pools.get(name, ()) == accepted[name].pools)
    }
    _end(ws, [row for name, row in stored.items() if name not in same])
    for name in sorted(set(stored) - set(wanted)):
        _note(ws, name, "remove", "", {})
    for name in sorted(set(wanted) - same):
        _begin(ws, wanted[name], accepted[name].pools if name in accepted else ())
    before = counting.intervals(pool.range for some in pools.values() for pool in some)
    after = counting.intervals(pool.range for group in accepted.values() for pool in group.pools)
    _note_addresses(ws, "orphan", "in no range of any group any more", counting.subtract(before, after))
    _note_addresses(ws, "cover", "in a range again", counting.subtract(after, before))


def accepted_pools(ws: Workspace) -> dict[str, tuple[Pool, ...]]:
    """The pools of the groups that are accepted, in the order written."""
    ws.flush()
    statement = select(_R, _G.c.name).join(_G, _G.c.id == _R.c.group_id)
    rows = ws.db.rows(statement.where(_CURRENT, _G.c.accepted).order_by(_G.c.name, _R.c.position))
    found: dict[str, list[Pool]] = {}
    for row in rows:
        pool = Pool(Range(row.first, row.last), ip_network(row.subnet), row.prefix_length)
        found.setdefault(row.name, []).append(pool)
    return {name: tuple(pools) for name, pools in found.items()}


def _wanted_accepted(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "uid": group.uid,
        "generation": group.generation,
        "accepted": True,
        "refusal": "",
        "pool_type": group.pool_type.value,
        "agent_decides": group.agent_decides,
        "avoid_first_last": group.avoid_first_last,
        "quarantine_s": group.quarantine_s,
    }


def _wanted_refused(name: str, why: InvalidGroup) -> dict[str, Any]:
    return {
        "name": name,
        "uid": "",
        "generation": 0,
        "accepted": False,
        "refusal": plain(str(why)) or "refused",
        "pool_type": "",
        "agent_decides": False,
        "avoid_first_last": False,
        "quarantine_s": 0.0,
    }


def _same(wanted: Mapping[str, Any], row: Any) -> bool:
    return all(getattr(row, name) == value for name, value in wanted.items())


def _end(ws: Workspace, rows: Iterable[Any]) -> None:
    ws.db.many(_END, [{"key_": row.id, "now_": ws.now} for row in rows])


def _begin(ws: Workspace, values: dict[str, Any], pools: tuple[Pool, ...]) -> None:
    number = ws.next_id(ServiceGroup)
    ws.db.many(_INSERT_GROUP, [{"id": number, "from_at": ws.now, **values}])
    ws.db.many(_INSERT_RANGE, [_range_row(number, position, pool) for position, pool in enumerate(pools)])
    trigger = "accept" if values["accepted"] else "refuse"
    details = {"generation": values["generation"], "pools": [str(pool.range) for pool in pools[:64]]}
    _note(ws, values["name"], trigger, values["refusal"], details if values["accepted"] else {})


def _range_row(number: int, position: int, pool: Pool) -> dict[str, Any]:
    return {
        "group_id": number,
        "position": position,
        "family": pool.family,
        "first": pool.range.first,
        "last": pool.range.last,
        "range_text": str(pool.range),
        "subnet": str(pool.subnet),
        "prefix_length": pool.prefix_length,
    }


def _note(ws: Workspace, name: str, trigger: str, reason: str, details: dict[str, object]) -> None:
    ws.note(Entry("group", trigger, None, None, group=name, reason=reason, details=details))


def _note_addresses(ws: Workspace, trigger: str, reason: str, where: Iterable[counting.Interval]) -> None:
    """One row for each address in use there: its history says since when it has been an orphan (spec A22)."""
    for row in counting.live_within(ws.db, where):
        namespace, _, name = row.claim.partition("/")
        state = {"state": str(row.state)}
        ws.note(
            Entry(
                "group",
                trigger,
                None,
                None,
                namespace=namespace,
                name=name,
                group=row.group_name,
                address=row.address_text,
                reason=reason,
                details=state,
            )
        )


_INSERT_GROUP, _INSERT_RANGE = insert(_G), insert(_R)
_END = update(_G).where(_G.c.id == bindparam("key_")).values(until_at=bindparam("now_"))
