"""How long an address stays for its heir, by the clock alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from ipaddress import ip_address, ip_network

import pytest

from purelb_sm.agent.handover import ASK_AFTER_S, Handover
from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.announce import Announcements, Groups, Place
from purelb_sm.domain.announcing import Holder, render_announcing
from purelb_sm.domain.election import Electorate
from purelb_sm.domain.groups import parse_group
from purelb_sm.domain.views import Ingress, ObjectView, ServiceKey, ServiceView
from purelb_sm.errors import Unavailable
from tests.support.virtual_time import run_virtual, virtual_clock

LAN = ip_network("10.0.0.0/24")
IP, OTHER = ip_address("10.0.0.7"), ip_address("10.0.0.8")
KEY = ServiceKey("test", "s")
SPEC = {"local": {"v4pools": [{"subnet": "10.0.0.0/24", "pool": "10.0.0.0/24"}]}}
GROUPS = Groups(
    [parse_group(ObjectView("ServiceGroup", "purelb.io/v2", "purelb-system", "g", "u", "1", 1, None, SPEC))]
)
BOUND_S = 10.0


class Node:
    """The node `a`, which is being drained; its clock; and one Service, as this node sees it."""

    def __init__(self, *others: str) -> None:
        self.now = 1000.0
        self.may_wait = True
        self.table = Announcements(Place("a", groups=GROUPS))
        self.views: dict[ServiceKey, ServiceView] = {}
        self.named()
        self.live(*others)
        self.handover = Handover(
            "a",
            self.table,
            self.views.get,
            lambda: self.now,
            bound_s=BOUND_S,
            may_wait=lambda: self.may_wait,
        )

    def live(self, *others: str) -> None:
        """These nodes and this one; this one is being drained."""
        self.table.move(Place("a", Electorate({n: [LAN] for n in ("a", *others)}, ["a"]), groups=GROUPS))

    def named(self, **holders: str) -> None:
        """What the annotation says: the last number of each address, with its node."""
        entries = {
            ip: Holder(holders[f"ip{str(ip)[-1]}"], "eth0") for ip in (IP, OTHER) if f"ip{str(ip)[-1]}" in holders
        }
        text = render_announcing(entries, (IP, OTHER))
        annotations = {names.ALLOCATED_BY: names.BRAND, names.ANNOUNCING_V4: text}
        ingress = (Ingress(str(IP)), Ingress(str(OTHER)))
        self.views[KEY] = ServiceView(KEY, "u", "1", "LoadBalancer", annotations=annotations, ingress=ingress)
        self.table.update(self.views[KEY])


@pytest.mark.spec("C17")
def test_it_stays_until_the_annotation_names_the_heir_for_this_very_address() -> None:
    node = Node("b")
    node.named(ip7="a", ip8="a")
    assert node.handover.keeps(IP)
    node.named(ip7="a", ip8="b")
    assert node.handover.keeps(IP)
    assert node.handover.waiting == 1
    node.named(ip7="b", ip8="b")
    assert not node.handover.keeps(IP)
    assert (node.handover.waiting, node.handover.given, node.handover.overdue) == (0, 1, 0)


@pytest.mark.spec("C17")
def test_cut_off_from_the_api_server_in_the_middle_it_waits_no_longer_than_the_bound() -> None:
    node = Node("b")
    assert node.handover.keeps(IP)
    assert node.handover.next_end() == 1000.0 + BOUND_S
    node.now += BOUND_S - 0.1
    assert node.handover.keeps(IP)
    assert node.handover.due() == []
    node.now += 0.1
    assert node.handover.due() == [IP]
    assert not node.handover.keeps(IP)
    assert not node.handover.keeps(IP), "not again, though the kernel may have refused to let it go"
    assert (node.handover.waiting, node.handover.overdue, node.handover.next_end()) == (0, 1, None)


@pytest.mark.spec("C17")
def test_another_heir_has_its_own_time_and_without_any_the_address_is_not_given_away() -> None:
    node = Node("b")
    assert node.handover.keeps(IP)
    node.now += BOUND_S - 1
    node.live("c")
    assert node.handover.keeps(IP)
    node.now += BOUND_S - 1
    assert node.handover.keeps(IP)
    node.named(ip7="b")
    assert node.handover.keeps(IP), "the one that named itself is gone"
    node.live()
    assert node.table.heir(IP) is None
    assert node.table.winner(IP) == "a"


@pytest.mark.spec("C14")
def test_an_agent_that_may_hold_nothing_waits_for_nobody() -> None:
    node = Node("b")
    assert node.handover.keeps(IP)
    node.may_wait = False
    assert not node.handover.keeps(IP)
    assert node.handover.waiting == 0


def test_only_another_nodes_word_makes_it_a_takeover() -> None:
    node = Node("b")
    node.named(ip7="a", ip8="b")
    assert not node.handover.takes_over(IP)
    assert node.handover.takes_over(OTHER)
    assert not node.handover.takes_over(ip_address("10.0.0.9"))


class Reports:
    """What other nodes report in virtual time; who was asked, and when; and what the loop was told."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.announced: dict[str, list[Address]] = {}
        self.asked: list[tuple[float, str]] = []
        self.changed: list[Address] = []
        self.failing = False

    async def announced_by(self, node: str) -> Collection[Address]:
        self.asked.append((virtual_clock(), node))
        if self.failing:
            raise Unavailable("503")
        return self.announced.get(node, [])

    def touch(self, addresses: Iterable[Address]) -> None:
        self.changed += addresses

    async def live(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.node.now = virtual_clock()
            await asyncio.sleep(0.1)
        self.node.now = virtual_clock()


def reporting(play: Callable[[Node, Reports], Awaitable[None]]) -> None:
    async def main() -> None:
        node = Node("b")
        reports = Reports(node)
        task = asyncio.create_task(node.handover.run(reports.announced_by, reports.touch))
        await asyncio.sleep(0)
        node.now = virtual_clock()
        await play(node, reports)
        assert not task.done()
        task.cancel()

    run_virtual(main())


@pytest.mark.spec("C17")
def test_an_heir_that_is_long_in_writing_to_services_is_asked_for_its_report() -> None:
    async def play(node: Node, reports: Reports) -> None:
        reports.announced = {"b": [OTHER], "c": [IP]}
        assert node.handover.keeps(IP)
        await reports.live(3.0)
        assert min(at for at, _ in reports.asked) >= ASK_AFTER_S, "an older one may be of the time before"
        assert {who for _, who in reports.asked} == {"b"}, "nobody else is asked"
        assert node.handover.keeps(IP), "what the heir does not report it does not have"
        reports.announced["b"] = [OTHER, IP]
        await reports.live(1.0)
        assert reports.changed == [IP], "told once"
        assert not node.handover.keeps(IP)
        assert (node.handover.waiting, node.handover.given, node.handover.overdue) == (0, 1, 0)
        asked = len(reports.asked)
        await reports.live(3.0)
        assert len(reports.asked) == asked, "while nothing waits nobody is asked"

    reporting(play)


@pytest.mark.spec("C17")
def test_an_address_that_is_given_away_soon_costs_no_look_at_reports() -> None:
    async def play(node: Node, reports: Reports) -> None:
        for _ in range(3):
            node.named(ip7="a", ip8="a")
            assert node.handover.keeps(IP)
            await reports.live(0.5)
            node.named(ip7="b", ip8="a")
            assert not node.handover.keeps(IP)
            await reports.live(0.5)
        assert reports.asked == []

    reporting(play)


@pytest.mark.spec("C17", "E2")
def test_reports_that_cannot_be_read_are_asked_for_again_and_of_one_heir_count_not_for_the_next() -> None:
    async def play(node: Node, reports: Reports) -> None:
        reports.failing = True
        assert node.handover.keeps(IP)
        await reports.live(2.0)
        reports.failing, reports.announced = False, {"b": [IP]}
        node.live("c")
        assert node.handover.keeps(IP)
        await reports.live(2.0)
        assert node.handover.keeps(IP)
        node.live("b")
        assert node.handover.keeps(IP), "the wait for this one has only begun"
        await reports.live(2.0)
        assert not node.handover.keeps(IP)

    reporting(play)
