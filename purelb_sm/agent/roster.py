"""Who takes part in the election: the live nodes that we do not suspect, with what each says in its Lease: its subnets,
and if it is drained.

Also buries the dead: the Lease of a node that has not come back is deleted after a while, so that an agent that starts
later does not take it for a live one. A node that comes back makes its Lease anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from purelb_sm.agent.heartbeats import Neighbour
from purelb_sm.domain import names
from purelb_sm.domain.addresses import Network
from purelb_sm.domain.draining import says_draining
from purelb_sm.domain.election import Electorate, parse_subnets
from purelb_sm.domain.heartbeat import Beacon, parse_beacon
from purelb_sm.domain.views import LeaseView
from purelb_sm.errors import KubeError
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.leases import Liveness
from purelb_sm.kube.reflector import Reflector
from purelb_sm.kube.resources import LEASES

log = structlog.get_logger(__name__)

BURY_AFTER_S: Final = 60.0
BURY_EVERY_S: Final = 10.0


class Roster:
    """The electorate, from the Leases that a reflector keeps and the nodes that `liveness` takes for alive.

    `suspected`: those that have fallen silent, by their heartbeats.
    """

    def __init__(
        self,
        node: str,
        namespace: str,
        leases: Reflector[tuple[str, str], LeaseView],
        liveness: Liveness,
        clock: Callable[[], float],
        suspected: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        self._node = node
        self._namespace = namespace
        self._leases = leases
        self._liveness = liveness
        self._clock = clock
        self._suspected = suspected
        self._read: dict[str, tuple[str, frozenset[Network]]] = {}
        self._beacons: dict[str, tuple[str, Beacon | None]] = {}
        self._silent_since: dict[tuple[str, str], float] = {}

    @property
    def counted(self) -> bool:
        """Whether this node itself takes part: its Lease has been seen, and not run out since."""
        return self._node in self._liveness.live()

    def electorate(self, own: frozenset[Network], *, draining: bool = False) -> Electorate:
        """The live nodes with their subnets; of this node, what it knows itself: its subnets now, and `draining`."""
        nodes = {node: own if node == self._node else self._subnets(node) for node in self._liveness.live()}
        drained = [node for node in nodes if (draining if node == self._node else self._drained(node))]
        suspected = self._suspected() & nodes.keys() - {self._node}
        taken = frozenset[Network]().union(*(nodes[node] for node in nodes.keys() - suspected))
        # Where there is nobody else, nothing is won by leaving it out.
        nodes |= {node: nodes[node] - taken for node in suspected}
        return Electorate(nodes, drained)

    def neighbours(self) -> dict[str, Neighbour]:
        """The other nodes that can be heard, also those whose Lease ran out: they may live, and not know it."""
        live = self._liveness.live()
        found = {lease.name.removeprefix(names.NODE_LEASE_PREFIX): lease for lease in self._node_leases()}
        self._read = {node: read for node, read in self._read.items() if node in found}
        self._beacons = {node: read for node, read in self._beacons.items() if node in found}
        beacons = {node: self._beacon(node, lease) for node, lease in found.items() if node != self._node}
        return {
            node: Neighbour(beacon, self._subnets(node), node in live) for node, beacon in beacons.items() if beacon
        }

    def _node_leases(self) -> list[LeaseView]:
        return [lease for lease in self._leases.items().values() if lease.name.startswith(names.NODE_LEASE_PREFIX)]

    def _beacon(self, node: str, lease: LeaseView) -> Beacon | None:
        text = lease.annotations.get(names.HEARTBEAT, "")
        read = self._beacons.get(node)
        if read is None or read[0] != text:
            read = self._beacons[node] = (text, parse_beacon(text))
        return read[1]

    def _lease(self, node: str) -> LeaseView | None:
        return self._leases.get((self._namespace, names.NODE_LEASE_PREFIX + node))

    def _drained(self, node: str) -> bool:
        lease = self._lease(node)
        return lease is not None and says_draining(lease.annotations)

    def _subnets(self, node: str) -> frozenset[Network]:
        lease = self._lease(node)
        text = lease.annotations.get(names.SUBNETS, "") if lease else ""
        read = self._read.get(node)
        if read is None or read[0] != text:
            read = self._read[node] = (text, parse_subnets(text))
        return read[1]

    async def bury(self, client: KubeClient) -> None:
        """Deletes the Leases of the dead, for ever. One live node does it, the first by name."""
        while True:
            await asyncio.sleep(BURY_EVERY_S)
            for lease in self._dead():
                body = {"preconditions": {"uid": lease.uid, "resourceVersion": lease.resource_version}}
                try:
                    # Conditional: a Lease that was renewed in this moment stays.
                    await client.request("DELETE", LEASES.path(lease.name, lease.namespace), body=body)
                    log.info("lease_of_dead_node_deleted", lease=lease.name)
                except KubeError as error:
                    log.debug("lease_not_deleted", lease=lease.name, error=str(error))

    def _dead(self) -> list[LeaseView]:
        """Leases that have not changed for long, by our own clock, of nodes that are not alive."""
        now, live = self._clock(), self._liveness.live()
        silent = {
            (lease.name, lease.resource_version): lease
            for lease in self._node_leases()
            if lease.name.removeprefix(names.NODE_LEASE_PREFIX) not in live
        }
        self._silent_since = {key: self._silent_since.get(key, now) for key in silent}
        if not self._liveness.judging or min(live, default="") != self._node:
            return []
        return [lease for key, lease in silent.items() if now - self._silent_since[key] >= BURY_AFTER_S]
