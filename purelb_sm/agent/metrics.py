"""What an agent counts, read at the moment of a scrape. No label grows with the number of addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from purelb_sm.agent.heartbeats import Heartbeats
from purelb_sm.agent.upkeep import Upkeep

_PREFIX = "purelb_lbnodeagent_"


class AgentMetrics(Collector):
    """A collector in a registry of its own, so that several agents in one process (tests) do not share counters."""

    def __init__(
        self,
        upkeep: Upkeep,
        live_nodes: Callable[[], int],
        lease_valid: Callable[[], bool],
        heartbeats: Heartbeats,
        draining: Callable[[], bool],
    ) -> None:
        self.registry = CollectorRegistry()
        self._upkeep = upkeep
        self._live_nodes = live_nodes
        self._lease_valid = lease_valid
        self._heartbeats = heartbeats
        self._draining = draining
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        holdings, frames = self._upkeep.announcer.holdings, self._upkeep.announcer.frames
        counted, handover = holdings.counters, self._upkeep.handover
        conflicts = self._upkeep.announcer.conflicts.counters
        yield from _each(
            CounterMetricFamily,
            {
                "address_additions": ("Addresses put on an interface", counted.added),
                "address_withdrawals": ("Addresses taken off an interface", counted.removed),
                "address_renewals": ("Lifetimes renewed", counted.renewed),
                "address_vanished": ("Addresses that left without us", counted.vanished),
                "kernel_refusals": ("Additions and removals that the kernel refused", counted.failed),
                "handovers": ("Addresses withdrawn after another node announced them", handover.given),
                "handovers_overdue": ("Addresses that no other node announced in time", handover.overdue),
                "garp_sent": ("Gratuitous ARPs and unsolicited NAs sent", frames.sent),
                "conflict_probes": ("ARP probes and solicitations for duplicates sent", conflicts.probes),
                "conflicts_found": ("Probes that a foreign host answered, so that we do not announce", conflicts.found),
                "conflicts_announced": ("Foreign hosts heard to use an address that we announce", conflicts.announced),
                "conflict_defences": ("Announcements sent because of those", conflicts.defences),
                "heartbeats_sent": ("Heartbeats sent to the agents of other nodes", self._heartbeats.sent),
                "heartbeats_received": ("Heartbeats of other nodes taken", self._heartbeats.received),
                "suspicions": ("Times that a node was left out because it fell silent", self._heartbeats.suspicions),
            },
        )
        rejected = CounterMetricFamily(_PREFIX + "heartbeats_rejected", "Datagrams not taken", labels=["why"])
        for why, count in self._heartbeats.rejected.items():
            rejected.add_metric([why], count)
        yield rejected
        yield from _each(
            GaugeMetricFamily,
            {
                "addresses": ("Addresses of ours that the kernel holds", len(holdings)),
                "addresses_handing_over": ("Addresses kept until another node announces them", handover.waiting),
                "draining": ("1 while this node gives its addresses up", int(self._draining())),
                "live_nodes": ("Nodes that take part in the election", self._live_nodes()),
                "lease_valid": ("1 while the others count on this node", int(self._lease_valid())),
                "peers_heard": ("Nodes that are heard, and that have heard this one", self._heartbeats.heard()),
                "peers_suspected": ("Nodes left out because they fell silent", len(self._heartbeats.suspected)),
                "cut_off": ("1 while local addresses are given up, as others have them", int(self._heartbeats.cut_off)),
            },
        )


def _each(
    family: type[CounterMetricFamily] | type[GaugeMetricFamily], values: Mapping[str, tuple[str, int]]
) -> Iterator[Metric]:
    for name, (what, value) in values.items():
        yield family(_PREFIX + name, what, value=value)
