"""Whether a node is being drained, and why: what its Node object says, and what its agent says in its Lease.

An agent reads its own Node only, and tells the others in its Lease, in one write with its subnets: so all that watch
the Leases see the same, and decide alike. What stands in the annotations is for people; that they are there counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.election import Electorate
from purelb_sm.domain.views import NodeView


class Draining(Enum):
    """Why a node gives its addresses up. The value is what its Lease says."""

    STOPPING = "stopping"
    """Its agent was told to stop."""
    DRAINED = "drain"
    """`purelb drain`: the Node has our annotation."""
    EXCLUDED = "excluded"
    """The Node has the label by which Kubernetes keeps nodes out of every external load balancer."""


def asked_of(node: NodeView | None) -> Draining | None:
    """What people ask of the node. That they set the label or the annotation counts, whatever its value is: so does
    Kubernetes read the label."""
    if node is None:
        return None
    if names.DRAIN in node.annotations:
        return Draining.DRAINED
    return Draining.EXCLUDED if names.EXCLUDE_LABEL in node.labels else None


def says_draining(lease_annotations: Mapping[str, str]) -> bool:
    """Whether a node's Lease says that it is being drained, for whatever reason."""
    return names.DRAINING in lease_annotations


def why_leaving(node: NodeView | None, lease_annotations: Mapping[str, str]) -> str:
    """Why the node gives its addresses up, for people; empty where it does not. Its Lease has the first word, since it
    is what the other nodes go by, and tells of an agent that is told to stop."""
    said = lease_annotations.get(names.DRAINING)
    why = next((one for one in Draining if one.value == said), None) or asked_of(node)
    match why:
        case Draining.STOPPING:
            return "its agent was told to stop"
        case Draining.DRAINED:
            mark = node.annotations.get(names.DRAIN, "") if node else ""
            return f"it is drained{f' ({mark})' if mark else ''}"
        case Draining.EXCLUDED:
            return f"its Node has the label {names.EXCLUDE_LABEL}"
        case None:
            return ""


@dataclass(frozen=True, slots=True)
class Staying:
    """An address that a drained node still holds, and why. `for_good`: nobody else can hold it as things are."""

    address: Address
    why: str
    for_good: bool


def what_stays(
    node: str, held: Iterable[Address], electorate: Electorate, elsewhere: Collection[Address]
) -> tuple[Staying, ...]:
    """Why the drained `node` holds each of these, in order. `elsewhere` are those that nodes which are not drained say
    they announce."""
    ordered = sorted(held, key=lambda address: (address.version, int(address)))
    return tuple(_staying(node, address, electorate, elsewhere) for address in ordered)


def _staying(node: str, address: Address, electorate: Electorate, elsewhere: Collection[Address]) -> Staying:
    candidates = electorate.candidates(address)
    winner = electorate.winner(address)
    if address in elsewhere:
        return Staying(address, "another node announces it already, so it is about to go", for_good=False)
    if not candidates:
        return Staying(address, "no other node announces it", for_good=True)
    if winner != node:
        return Staying(address, f"{winner} is to have it, and does not announce it yet", for_good=False)
    alone = len(candidates) == 1
    why = "no other node has its subnet" if alone else "all others that have its subnet are drained, too"
    return Staying(address, why, for_good=True)
