"""Plans into transitions. A plan says what happened; what a row becomes is for the machines to say."""

from __future__ import annotations

from purelb_sm.domain.book import (
    Action,
    Allocate,
    Hold,
    Leave,
    Observe,
    Plan,
    Reclaim,
    Refuse,
    Revive,
    Withdraw,
)
from purelb_sm.domain.states import AllocationTrigger, ServiceState, ServiceTrigger
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
    allocation = ws.hold(action.address, action.group, action.key, action.uid, action.reason)
    ws.join(allocation, service, action.ports)


def _reclaim(ws: Workspace, action: Reclaim) -> None:
    service = _asking(ws, action.uid, "reclaim")
    allocation = _allocation(ws, action.allocation_id)
    same = allocation.claim == str(action.key)
    allocation.group = action.group or allocation.group
    ws.fire_allocation(allocation, AllocationTrigger.RECLAIM, uid=action.uid, same_claim=same)
    allocation.quarantined_until = None
    ws.join(allocation, service, action.ports)


def _leave(ws: Workspace, action: Leave) -> None:
    service, allocation = _service(ws, action.uid), _allocation(ws, action.allocation_id)
    if service.uid not in allocation.members:
        raise StoreError(f"{action.key} is no member of {allocation.address}")
    ws.leave(allocation, service)
    if allocation.members:
        ws.note(_membership(allocation, service, "leave", action.reason))
    else:
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


def _membership(allocation: AllocationEntry, service: ServiceEntry, trigger: str, reason: str) -> Entry:
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
