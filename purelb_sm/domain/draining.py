"""Whether a node is being drained, and why: what its Node object says, and what its agent says in its Lease.

An agent reads its own Node only, and tells the others in its Lease, in one write with its subnets: so all that watch
the Leases see the same, and decide alike. What stands in the annotations is for people; that they are there counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from purelb_sm.domain import names
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
