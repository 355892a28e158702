"""The agent of one node: its parts put together, its start and its end.

Start: the configuration, then the node's own subnets, then its Lease, which names them; and when that Lease has been
seen among the others', the first comparison. The Lease is renewed whatever the rest does.
End: the Lease says so, each local address is handed to the next node and answers here until it answers there; what is
left is withdrawn, and only then the Lease deleted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from datetime import datetime
from math import isfinite
from typing import Final
from uuid import uuid4

import structlog

from purelb_sm.agent import heartbeats
from purelb_sm.agent.conflicts import Surroundings
from purelb_sm.agent.drain import Drain
from purelb_sm.agent.endpoints import ServiceEndpoints
from purelb_sm.agent.handover import Handover
from purelb_sm.agent.heartbeats import Heartbeats
from purelb_sm.agent.intake import ConfigReader, GroupReader, Watches, ready
from purelb_sm.agent.ledger import Ledger, Where
from purelb_sm.agent.metrics import AgentMetrics
from purelb_sm.agent.roster import Roster
from purelb_sm.agent.stations import Stations
from purelb_sm.agent.survey import OwnSubnets
from purelb_sm.agent.telling import Telling
from purelb_sm.agent.upkeep import Bearings, Upkeep
from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.agent_config import AgentConfig
from purelb_sm.domain.announce import Announcements, Groups, Place
from purelb_sm.domain.announcing import holders_of
from purelb_sm.domain.draining import Draining, asked_of
from purelb_sm.domain.election import render_subnets
from purelb_sm.domain.macs import render_macs
from purelb_sm.domain.views import LeaseView, NodeView, ObjectView, ServiceKey, ServiceView
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.events import EventRecorder
from purelb_sm.kube.leases import HeldLease, Liveness
from purelb_sm.kube.reading import read_announced
from purelb_sm.kube.reflector import Change
from purelb_sm.kube.reports import ReportWriter
from purelb_sm.kube.wire import utc_now
from purelb_sm.net import DatagramProtocol, Datagrams, KernelProtocol, NetError
from purelb_sm.settings import AgentSettings

log = structlog.get_logger(__name__)

HAND_OVER_S: Final = 2.0
"""For so long an agent that is told to stop waits for the other nodes to announce what it holds. What none of them has
announced by then is withdrawn like the rest."""
WITHDRAW_S: Final = 2.6
"""For so long, that included, it waits for the kernel, before it deletes its Lease in any case."""
REPORT_S: Final = 0.4
GOODBYE_S: Final = 0.7
"""... and for so long for the API server's answers after that: less than 5 s in all (D9)."""


class Agent:
    """One incarnation of a node's agent.

    `clock` is monotonic, `now` the time of day for reports and Events. The kernel must be open already, and is left
    open. `datagrams` carry the heartbeats; by default on the port of the settings.
    """

    def __init__(
        self,
        settings: AgentSettings,
        client: KubeClient,
        kernel: KernelProtocol,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
        datagrams: DatagramProtocol | None = None,
    ) -> None:
        if not settings.node_name:
            raise ValueError("an agent must know the name of its node")
        node, namespace = settings.node_name, settings.install_namespace
        self._settings = settings
        self._client = client
        self._clock = clock
        self._strict = settings.when_api_away == "strict"
        self.incarnation = str(uuid4())
        self.watches = Watches.of(client, node, namespace, clock)
        # All nodes' Leases are alike, so that our own tells within what time renewals have to be seen.
        self.liveness = Liveness(
            self.watches.leases, fresh_s=settings.lease_s * 0.3, gap_s=settings.lease_s * 0.5, clock=clock
        )
        self.lease = HeldLease(
            client,
            node,
            namespace=namespace,
            duration_s=settings.lease_s,
            renew_s=settings.renew_s,
            clock=clock,
            now=now,
        )
        self.recorder = EventRecorder(client, names.AGENT, node, clock=clock, now=now)
        self.ledger = Ledger(node, self.incarnation, now)
        self._stations = Stations(clock)
        self.heartbeats = Heartbeats(
            datagrams or Datagrams(settings.heartbeat_port),
            port=settings.heartbeat_port,
            interval_s=settings.heartbeat_s,
            rests=settings.keep_on_exit,
            lease_valid=lambda: self.lease.valid,
            clock=clock,
        )
        self._roster = Roster(
            node, namespace, self.watches.leases, self.liveness, clock, lambda: self.heartbeats.suspected
        )
        self._group_reader, self._config_reader = GroupReader(), ConfigReader(node, self.recorder.object)
        self._groups: Groups | None = None
        self._config: AgentConfig | None = None
        self._configured = False
        self._work: asyncio.Future[None] | None = None
        self._counted_until = float("-inf")
        self.endpoints = ServiceEndpoints(client, node, clock, self._endpoints_changed)
        self.table = Announcements(Place(node, load_balancer_class=settings.load_balancer_class), self.endpoints)
        self.telling = Telling(node, client, self.watches, self.table, self.ledger, self.recorder, self._heard)
        # No longer than a Lease: an heir that has not said a word by then is dead, or cannot.
        handover = Handover(
            node,
            self.table,
            self.watches.services.get,
            clock,
            bound_s=settings.lease_s,
            may_wait=lambda: self.upkeep.safe,
        )
        self.upkeep = Upkeep(
            kernel,
            self.ledger,
            self.table,
            Bearings(
                lambda: self._configured,
                lambda: self._config,
                self._place,
                lambda: self.lease.valid_until,
                lambda: self.heartbeats.cut_off,
                self.heartbeats.vouched,
            ),
            self.telling,
            clock,
            resync_s=settings.resync_s,
            strict=self._strict,
            around=Surroundings(
                self._stations.is_ours,
                self.telling.was_announced,
                lambda: self.lease.valid and not self.heartbeats.cut_off,
            ),
            handover=handover,
        )
        self.reports = ReportWriter(
            client, self.ledger.report, node, namespace=namespace, interval_s=settings.report_s, clock=clock
        )
        self.ledger.on_move(self.reports.mark)
        self.metrics = AgentMetrics(
            self.upkeep,
            lambda: len(self.liveness.live() - self.heartbeats.suspected),
            lambda: self.lease.valid,
            self.heartbeats,
            lambda: self.drain.why is not None,
        )
        self.drain = Drain(
            node,
            namespace,
            client,
            self.table,
            self.recorder,
            lambda: self.watches.node.get(node),
            self._who_counts,
            lambda: {held.address for held in self.upkeep.announcer.holdings.all()},
            self.upkeep.touch,
            self.upkeep.wake,
        )
        self.table.elsewhere = self.drain
        self.upkeep.on_quiet(self.drain.settled)
        self._listen()

    # What the watches bring.

    def _listen(self) -> None:
        self.watches.services.on_change(self._service_changed)
        self.watches.groups.on_change(self._groups_changed)
        self.watches.configs.on_change(self._config_changed)
        self.watches.node.on_change(self._node_changed)
        self.watches.leases.on_change(self._lease_changed)
        self.liveness.on_change(self._live_nodes_changed)
        self.heartbeats.listener = heartbeats.Listener(self.upkeep.move, self._counted_again, self.upkeep.wake)
        self.lease.on_return(self._server_returned)

    def _service_changed(self, change: Change, old: ServiceView | None, new: ServiceView | None) -> None:
        view = new or old
        assert view is not None, "a change has an object"
        self._see_the_living(old, new)
        self.upkeep.touch(self.table.forget(view.key) if new is None else self.table.update(new))
        self.upkeep.touch(self.upkeep.handover.concerned(self.table.addresses_of(view.key)))
        self.telling.look_at(view.key)
        if self.table.follows_endpoints(view.key):
            self.endpoints.need()

    def _heard(self, where: Where) -> bool:
        return self.upkeep.announcer.frames.heard(where)

    def _endpoints_changed(self, service: ServiceKey | None) -> None:
        keys = self.table.following_endpoints() if service is None else [service]
        self.upkeep.touch(address for key in keys for address in self.table.endpoints_moved(key))

    def _groups_changed(self, change: Change, old: ObjectView | None, new: ObjectView | None) -> None:
        if old is None or new is None or _meaning(old) != _meaning(new):
            self._groups = None
            self.upkeep.move()

    def _config_changed(self, change: Change, old: ObjectView | None, new: ObjectView | None) -> None:
        if self._configured and (old is None or new is None or old.spec != new.spec):
            self._configure()

    def _node_changed(self, change: Change, old: NodeView | None, new: NodeView | None) -> None:
        if self.drain.why is not Draining.STOPPING:
            self._be_drained(asked_of(new))
        if self._configured and (old is None or new is None or old.labels != new.labels):
            self._configure()

    def _lease_changed(self, change: Change, old: LeaseView | None, new: LeaseView | None) -> None:
        self._stations.take(old, new)
        if old is None or new is None or old.annotations != new.annotations:
            self._meet()
            self.upkeep.move()
        elif new.name == names.NODE_LEASE_PREFIX + self._settings.node_name:
            self._own_lease_renewed()
            self.heartbeats.own_renewed()
        if new is not None and (old is None or old.renew_time != new.renew_time):
            self.heartbeats.renewed(new.name.removeprefix(names.NODE_LEASE_PREFIX))

    def _live_nodes_changed(self, joined: frozenset[str], left: frozenset[str]) -> None:
        self._meet()
        self.upkeep.move()
        if self._settings.node_name in joined and self.upkeep.ready:
            self.upkeep.returned()

    def _own_lease_renewed(self) -> None:
        """Seen by our own watch, so the others see it, too. Had it run out before, by any clock, they took over."""
        before, self._counted_until = self._counted_until, self.lease.valid_until
        if isfinite(before) and self._counted_until - before > self._settings.lease_s and self.upkeep.ready:
            self.upkeep.returned()
        if self._strict:
            self.upkeep.wake()

    def _be_drained(self, why: Draining | None) -> None:
        """The others learn of it with the next turn, and at the same time it counts here."""
        if self.drain.set(why):
            self.upkeep.move()

    def _who_counts(self) -> frozenset[str]:
        """The other nodes that live, as far as we know, and are not drained."""
        electorate = self.table.place.electorate
        return frozenset(electorate.nodes) - electorate.draining - self.heartbeats.suspected - {self.table.place.node}

    async def _announced_by(self, node: str) -> Collection[Address]:
        return await read_announced(self._client, self._settings.install_namespace, node)

    def _meet(self) -> None:
        """Who may be heard is as our own subnets and the others' Leases say."""
        self.heartbeats.follow(self.upkeep.homes, self._roster.neighbours())

    def _see_the_living(self, old: ServiceView | None, new: ServiceView | None) -> None:
        """Whoever writes that it holds what we had said to hold has lived since: as good as a renewal of its Lease, and
        sooner. Without this the two would undo each other's annotations until then."""
        if not self.heartbeats.suspected or old is None or new is None or old.annotations == new.annotations:
            return
        addresses = self.table.addresses_of(new.key)
        was, now = holders_of(old, addresses), holders_of(new, addresses)
        ours = [address for address, holder in was.items() if holder.node == self._settings.node_name]
        for node in {now[address].node for address in ours if address in now} & self.heartbeats.suspected:
            self.heartbeats.renewed(node)

    def _counted_again(self) -> None:
        """Others may have suspected this node, and answered for what it holds."""
        if self.upkeep.ready:
            self.upkeep.returned()

    def _server_returned(self) -> None:
        """Its Lease is renewed every few seconds, so it is the first to know; the watches need not wait any longer."""
        for reflector in self.watches.all():
            reflector.hasten()

    def _configure(self) -> None:
        self._configured = True
        node = self.watches.node.get(self._settings.node_name)
        config = self._config_reader.read(self.watches.configs.items().values(), node)
        if config != self._config or not self.upkeep.surveyed.is_set():
            log.info("configured", lbnodeagent=config.source or "defaults" if config else "none that can be used")
        self._config = config
        self.upkeep.resurvey()

    def _place(self, subnets: OwnSubnets) -> Place | None:
        """Where the node stands; None until all has been seen that decides it. Its Lease is told of its subnets and
        MACs, and whether it is being drained."""
        if not self.upkeep.surveyed.is_set():
            return None
        self._stations.own = self.upkeep.macs
        self.lease.set_annotations(
            {
                names.SUBNETS: render_subnets(subnet for _, subnet in subnets),
                names.MACS: render_macs(self.upkeep.macs),
                names.HEARTBEAT: self.heartbeats.beacon(self.upkeep.homes),
                names.DRAINING: self.drain.why.value if self.drain.why else None,
            }
        )
        self._meet()
        # That the Lease counts is not enough: it may still be as an earlier incarnation left it.
        counted = self._roster.counted and self.lease.taken.is_set()
        if not self.watches.synced or not (counted or self.upkeep.ready):
            return None
        if self._groups is None:
            self._groups = self._group_reader.read(self.watches.groups.items().values())
        own = frozenset(subnet for _, subnet in subnets)
        electorate = self._roster.electorate(own, draining=self.drain.why is not None)
        return Place(
            self._settings.node_name,
            electorate,
            subnets,
            self._config,
            self._groups,
            self._settings.load_balancer_class,
        )

    # Running.

    def checks(self) -> dict[str, bool]:
        """For /readyz: what readiness depends on, and whether each is well now."""
        return {"synced": self.watches.synced, "lease": self.lease.valid, "kernel": self.upkeep.settled.is_set()}

    async def run(self) -> None:
        """Works until cancelled, then ends in order. An error that is none of the cluster's or the kernel's flies out,
        and leaves what is announced where it is: the next incarnation takes it over."""
        await self.recorder.__aenter__()
        self._work = work = asyncio.ensure_future(self._run_parts())
        try:
            # Waited for, not awaited: while the addresses are handed over, all parts must go on.
            await asyncio.wait({work})
            work.result()
        except asyncio.CancelledError:
            await self.leave()
            raise
        finally:
            await _ended(work)

    async def _run_parts(self) -> None:
        async with asyncio.TaskGroup() as group:
            for reflector in self.watches.all():
                group.create_task(reflector.run())
            group.create_task(self.liveness.run())
            group.create_task(self.upkeep.watch_kernel())
            group.create_task(self.endpoints.run())
            group.create_task(self.upkeep.run())
            group.create_task(self.upkeep.announcer.frames.run())
            group.create_task(self.upkeep.announcer.conflicts.run())
            group.create_task(self.heartbeats.run())
            group.create_task(self.drain.run())
            group.create_task(self.upkeep.handover.run(self._announced_by, self.upkeep.touch))
            group.create_task(self._take_part())
            group.create_task(self._tell())

    async def _take_part(self) -> None:
        await self.watches.configs.synced.wait()
        await self.watches.node.synced.wait()
        self._configure()
        await self.upkeep.surveyed.wait()
        self._place(self.upkeep.subnets)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.lease.run())
            group.create_task(self._roster.bury(self._client))
            for reflector in self.watches.all():
                await reflector.synced.wait()
            await self.lease.taken.wait()
            self.upkeep.move()

    async def _tell(self) -> None:
        await self.upkeep.settled.wait()
        log.info("settled", services=len(self.table), addresses=len(self.ledger))
        self.telling.open()
        # Even if it holds nothing: what an earlier incarnation reported ends with the first report of this one.
        self.reports.mark()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.telling.run())
            group.create_task(self.reports.run())

    async def leave(self) -> None:
        """What an agent does that is told to stop, unless it is to keep what it announces."""
        announcer = self.upkeep.announcer
        end = self._clock() + WITHDRAW_S
        if not self._settings.keep_on_exit:
            await self._hand_over()
        if self._work is not None:
            await _ended(self._work)
        if not self._settings.keep_on_exit:
            try:
                await _within(end - self._clock(), announcer.withdraw_all())
            except NetError as error:
                log.error("not_withdrawn", error=str(error))
        log.info("stopping", held=len(announcer.holdings))
        events = asyncio.ensure_future(self.recorder.close())
        # The report first: a node that is gone without one is booked as lost.
        told = await _within(REPORT_S, self.reports.flush())
        if not self._settings.keep_on_exit:
            told &= await _within(GOODBYE_S, self.lease.close())
        if not (told and await _within(GOODBYE_S, events)):
            log.warning("api_server_not_told")

    async def _hand_over(self) -> None:
        """Gives every address that another node can hold to that one. Without the others there is nothing to wait for:
        they do not read our Lease, or count on us no more."""
        if not (self.upkeep.ready and self.lease.valid):
            return
        log.info("handing_over", held=len(self.upkeep.announcer.holdings))
        self._be_drained(Draining.STOPPING)
        done = await _within(HAND_OVER_S, self.upkeep.handed_over())
        if left := self.upkeep.handover.waiting:
            log.warning("not_all_handed_over", left=left)
        elif done:
            # A report that is on its way already must not be cut off: it would have to begin anew.
            await _within(REPORT_S, self.reports.flush())


def _meaning(group: ObjectView) -> tuple[object, ...]:
    """What of a ServiceGroup decides anything here: its numbers change with every Service."""
    return group.spec, group.api_version, ready(group)


async def _ended(work: asyncio.Future[None]) -> None:
    """Cancels it, and waits for its end."""
    work.cancel()
    await asyncio.wait({work})
    if not work.cancelled() and (error := work.exception()) is not None:
        log.error("failed", error=repr(error))


async def _within(limit_s: float, work: Awaitable[object]) -> bool:
    """Waits for the work, but no longer than that; answers whether it has ended. Raises what it raised.

    Not asyncio.timeout: a cancellation from outside that comes together with a timeout of the work's own may be taken
    for that one, and then nothing ends the wait.
    """
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait({task}, timeout=limit_s)
    if done:
        task.result()
    else:
        task.cancel()
    return bool(done)
