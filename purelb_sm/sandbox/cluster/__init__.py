"""A cluster of nodes on one machine: network namespaces joined by a bridge, with a router and client beside them.

Owns: namespaces, cables, processes in them, the way from them to an API server, the answers on Service ports. Must not
know: what an API server says, Services, groups, the agent. Needs root, or a user namespace (`privileges`).
"""

from purelb_sm.sandbox.cluster.client import Sighting, Sniffer
from purelb_sm.sandbox.cluster.cluster import Cluster
from purelb_sm.sandbox.cluster.node_server import NodeServer
from purelb_sm.sandbox.cluster.privileges import NoPrivileges, ensure_privileges, inherited_descriptors
from purelb_sm.sandbox.cluster.process import NodeProcess
from purelb_sm.sandbox.cluster.proxy import ApiState
from purelb_sm.sandbox.cluster.state import PrefixTaken, cleanup_stale

__all__ = [
    "ApiState",
    "Cluster",
    "NoPrivileges",
    "NodeProcess",
    "NodeServer",
    "PrefixTaken",
    "Sighting",
    "Sniffer",
    "cleanup_stale",
    "ensure_privileges",
    "inherited_descriptors",
]
