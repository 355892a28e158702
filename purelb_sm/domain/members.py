"""What a member of a shared address does about it from plan to plan: its key, its ports, and when it may leave."""

from __future__ import annotations

from collections.abc import Sequence

from purelb_sm.domain.book import Action, BookedAllocation, EventNote, SetKey, SetPorts
from purelb_sm.domain.choose import World
from purelb_sm.domain.publication import shown_addresses
from purelb_sm.domain.requests import Request, usable_ports
from purelb_sm.domain.sharing import Obstacle, port_keys
from purelb_sm.domain.views import ServiceView


def set_keys(request: Request, kept: Sequence[BookedAllocation]) -> list[Action]:
    """What is kept is shared under the key that the Service has now."""
    return [
        SetKey(request.key, request.uid, a.id, a.address, a.group, request.ports, request.sharing_key)
        for a in kept
        if a.sharing_key != request.sharing_key
    ]


def set_ports(view: ServiceView, kept: Sequence[BookedAllocation], world: World) -> list[Action]:
    """The book follows the ports of the Service: it has those that no other has. What it does not want any more is
    given up even if it cannot have what it wants: two that exchange their ports would wait for each other for ever."""
    found: list[Action] = []
    for a in kept:
        taken = world.shared.clash(a.address, port_keys(usable_ports(view)), view.uid)
        ports = tuple(port for port in usable_ports(view) if (port.protocol, port.port) not in taken)
        if a.ports is not None and a.ports != port_keys(ports):
            found.append(SetPorts(view.key, view.uid, a.id, a.address, ports))
    return found


def clashes(view: ServiceView, kept: Sequence[BookedAllocation], world: World) -> list[Obstacle]:
    """Ports of the Service that another has, on the addresses that it has too."""
    ports = port_keys(usable_ports(view))
    return [Obstacle(a.address, *port) for a in kept for port in world.shared.clash(a.address, ports, view.uid)]


def shown_by_others(view: ServiceView, allocation: BookedAllocation, world: World) -> bool:
    """Whether the Service still shows an address that others have with it."""
    return world.shared.others(allocation.address, view.uid) and allocation.address in shown_addresses(view)


def apart(request: Request, kept: Sequence[BookedAllocation], world: World) -> list[EventNote]:
    """A sharing key that came after the address moves nothing, which is told once."""
    notes = []
    for a in kept:
        group = world.groups.get(a.group)
        if request.sharing_key is None or a.sharing_key is not None or group is None:
            continue
        other = world.shared.address_of(request.sharing_key, request.key.namespace, group, a.family, {a.address})
        if other is not None:
            text = f"{a.address} was given before the sharing key, and is kept: other Services share {other} under it"
            notes.append(EventNote("Warning", "ConfigurationWarning", text))
    return notes
