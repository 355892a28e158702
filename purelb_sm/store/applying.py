"""Plans into transitions. A plan says what happened; what a row becomes is for the machines to say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from purelb_sm.domain.addresses import Address
from purelb_sm.domain.book import (
    Action,
    Allocate,
    Hold,
    Join,
    Leave,
    Observe,
    Plan,
    Reclaim,
    Refuse,
    Revive,
    SetKey,
    SetPorts,
    Withdraw,
)
from purelb_sm.domain.sharing import port_keys
from purelb_sm.domain.states import AllocationState, AllocationTrigger, ServiceState, ServiceTrigger
from purelb_sm.domain.views import Port
from purelb_sm.errors import IllegalTransition, StoreError
from purelb_sm.store.entries import AllocationEntry, ServiceEntry
from purelb_sm.store.history import Entry, plain
from purelb_sm.store.workspace import Workspace


def apply(ws: Workspace, plan: Plan) -> None:
    """Does what the plan says, in memory. Raises IllegalTransition or StoreError: then nothing may be committed."""
    touched: dict[str, None] = {}
    for action in plan.actions:
        _act(ws, action)
        touched[action.uid] = None
    for uid in touched:
        settle(ws, ws.services[uid])


def settle(ws: Workspace, service: ServiceEntry, node: str = "") -> bool:
    """Makes a Service's state say whether a node announces one of its addresses. True where that was news."""
    announced = any(ws.allocations[number].announced for number in service.held)
    if announced and service.state is ServiceState.ALLOCATED:
        ws.fire_service(service, ServiceTrigger.ANNOUNCE, node=node)
        return True
    if not announced and service.state is ServiceState.ANNOUNCING:
        ws.fire_service(service, ServiceTrigger.FALL_SILENT, node=node)
        return True
    return False


def _act(ws: Workspace, action: Action) -> None:
    match action:
        case Observe():
            ws.observe(action.key, action.uid)
        case Revive():
            _revive(ws, action)
        case Withdraw():
            _withdraw(ws, action)
        case Hold():
            _hold(ws, action)
        case Reclaim():
            _reclaim(ws, action)
        case Join():
            _join(ws, action)
        case SetPorts():
            _set_ports(ws, action)
        case SetKey():
            _set_key(ws, action)
        case Leave():
            _leave(ws, action)
        case Allocate():
            _allocate(ws, action)
        case Refuse():
            _refuse(ws, action)


def _revive(ws: Workspace, action: Revive) -> None:
    service = _service(ws, action.uid)
    service.reason = service.message = service.group = ""
    ws.fire_service(service, ServiceTrigger.REVIVE)


def _withdraw(ws: Workspace, action: Withdraw) -> None:
    service = _service(ws, action.uid)
    if service.held:
        raise StoreError(f"{action.key} cannot be withdrawn while it is a member of {len(service.held)} allocations")
    service.reason, service.message = action.reason, ""
    ws.fire_service(service, ServiceTrigger.WITHDRAW, action.reason)


def _hold(ws: Workspace, action: Hold) -> None:
    service = _asking(ws, action.uid, "hold")
    allocation = ws.hold(action.address, action.group, action.key, action.uid, action.reason, action.sharing_key)
    ws.join(allocation, service, action.ports)


def _reclaim(ws: Workspace, action: Reclaim) -> None:
    service = _asking(ws, action.uid, "reclaim")
    allocation = _allocation(ws, action.allocation_id)
    same = allocation.claim == str(action.key)
    allocation.group = action.group or allocation.group
    allocation.sharing_key = action.sharing_key
    ws.fire_allocation(allocation, AllocationTrigger.RECLAIM, uid=action.uid, same_claim=same)
    allocation.quarantined_until = None
    ws.join(allocation, service, action.ports)


def _join(ws: Workspace, action: Join) -> None:
    """Beside those who share the address; or, where the last of them has left, in their place."""
    service, allocation = _asking(ws, action.uid, "join"), _at(ws, action.address)
    if allocation.sharing_key != action.sharing_key:
        raise StoreError(f"{action.address} is not shared under the key of {action.key}")
    details: dict[str, object] = {"sharingKey": action.sharing_key, "ports": _ports(action.ports)}
    if allocation.state is AllocationState.HELD:
        ws.note(_membership(allocation, service, "join", action.reason, details))
    else:
        allocation.group, allocation.claim = action.group, str(action.key)
        reason = action.reason or "had back by one who shares it"
        ws.fire_allocation(
            allocation, AllocationTrigger.RECLAIM, reason, uid=action.uid, details=details, same_claim=True
        )
        allocation.quarantined_until = None
    ws.join(allocation, service, action.ports)


def _set_ports(ws: Workspace, action: SetPorts) -> None:
    service, allocation = _member(ws, action)
    ws.set_ports(allocation, service, port_keys(action.ports))
    ws.note(_membership(allocation, service, "set_ports", "", {"ports": _ports(action.ports)}))


def _set_key(ws: Workspace, action: SetKey) -> None:
    service, allocation = _member(ws, action)
    if allocation.members != {action.uid}:
        raise StoreError(f"{allocation.address} is shared by {len(allocation.members)}: its key is not one's to change")
    allocation.sharing_key, allocation.claim, allocation.changed = action.sharing_key, str(action.key), True
    ws.note(_membership(allocation, service, "set_key", "", {"sharingKey": action.sharing_key}))


def _leave(ws: Workspace, action: Leave) -> None:
    service, allocation = _member(ws, action)
    ws.leave(allocation, service)
    if allocation.members:
        ws.note(_membership(allocation, service, "leave", action.reason, {}))
    else:
        # Whoever had it last may have it back.
        allocation.claim = str(action.key)
        ws.fire_allocation(allocation, AllocationTrigger.BEGIN_RELEASE, action.reason, uid=service.uid, no_members=True)


def _allocate(ws: Workspace, action: Allocate) -> None:
    service = _service(ws, action.uid)
    pending = service.state is ServiceState.PENDING
    service.reason = service.message = ""
    service.group = action.group
    addresses = [str(ws.allocations[number].address) for number in sorted(service.held)]
    ws.fire_service(
        service,
        ServiceTrigger.ALLOCATE if pending else ServiceTrigger.REALLOCATE,
        action.reason,
        details={"addresses": addresses},
        complete=bool(addresses),
    )


def _refuse(ws: Workspace, action: Refuse) -> None:
    service = _service(ws, action.uid)
    service.reason, service.message = action.reason.value, action.message
    service.group = action.group
    details = {"message": plain(action.message)}
    ws.fire_service(service, ServiceTrigger.REFUSE, action.reason.value, details=details)


def _member(ws: Workspace, action: Leave | SetPorts | SetKey) -> tuple[ServiceEntry, AllocationEntry]:
    service, allocation = _service(ws, action.uid), _allocation(ws, action.allocation_id)
    if service.uid not in allocation.members:
        raise StoreError(f"{action.key} is no member of {allocation.address}")
    return service, allocation


def _at(ws: Workspace, address: Address) -> AllocationEntry:
    """That of the address which is not released: loaded for those who join it, or made in this transaction."""
    found = ws.by_address.get(address)
    if found is None:
        raise StoreError(f"the allocation of {address} was not loaded in this transaction")
    return found


def _ports(ports: Iterable[Port]) -> list[str]:
    return [f"{protocol}/{port}" for protocol, port in sorted(port_keys(ports))]


def _membership(
    allocation: AllocationEntry,
    service: ServiceEntry,
    trigger: str,
    reason: str,
    details: Mapping[str, object],
) -> Entry:
    return Entry(
        "membership",
        trigger,
        None,
        None,
        namespace=service.key.namespace,
        name=service.key.name,
        uid=service.uid,
        group=allocation.group,
        address=str(allocation.address),
        reason=reason,
        details=details,
    )


def _asking(ws: Workspace, uid: str, trigger: str) -> ServiceEntry:
    service = _service(ws, uid)
    if service.state is ServiceState.WITHDRAWN:
        raise IllegalTransition("service", service.state, trigger, "a withdrawn Service holds nothing")
    return service


def _service(ws: Workspace, uid: str) -> ServiceEntry:
    try:
        return ws.services[uid]
    except KeyError:
        raise StoreError(f"the Service with uid {uid} was not loaded in this transaction") from None


def _allocation(ws: Workspace, number: int) -> AllocationEntry:
    try:
        return ws.allocations[number]
    except KeyError:
        raise StoreError(f"allocation {number} was not loaded in this transaction") from None
