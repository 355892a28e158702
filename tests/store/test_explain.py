"""`purelb explain` and `purelb pools`, as a person types them, on both engines."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from purelb_sm.cli.main import command
from purelb_sm.domain.book import Allocate, Hold, Join, Observe, Plan, Refuse
from purelb_sm.domain.remedies import REMEDIES, remedy
from purelb_sm.domain.states import AnnouncementState, AnnouncementTrigger
from purelb_sm.domain.views import Port, ServiceKey
from purelb_sm.errors import InvalidGroup, Reason
from tests.support.book import DNS, HTTP, WEB, Agent, Desk
from tests.support.domain import group, pools

WAITED = timedelta(minutes=10)


def purelb(url: str, *words: str) -> Result:
    return CliRunner().invoke(command(), words, env={"PURELB_DATABASE": url})


def explained(url: str, service: ServiceKey = WEB) -> dict[str, Any]:
    done = purelb(url, "explain", str(service), "-o", "json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def counted(url: str, name: str = "default", family: str = "IPv4") -> dict[str, Any]:
    done = purelb(url, "pools", "-o", "json", "--group", name)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)["families"][family]
    return found


@pytest.fixture
def desk(desk: Desk) -> Desk:
    """Its clock is ours, so that what is asked of now is asked of its time."""
    desk.now = datetime.now(UTC) - WAITED
    with desk.unit() as unit:
        default = group("default", pools("10.0.0.0/29", "fd00::/64", quarantine="1h"))
        unit.record_groups({"default": default}, {"broken": InvalidGroup("spec.local", "", "has no pool")})
        unit.commit()
    return desk


def refuse(desk: Desk, key: ServiceKey, reason: Reason, message: str) -> None:
    uid = f"uid-{key.name}"
    desk.do(key, Observe(key, uid), Refuse(key, uid, reason, message))


@pytest.mark.spec("B3")
def test_a_holder_is_explained_with_its_address_and_the_nodes_that_announce_it(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.3")
    desk.report(Agent("node3", started_at=desk.now).add("10.0.0.3", "enp1s0").report())
    found = explained(desk.url)
    assert (found["state"], found["group"], found["changes"]) == ("announcing", "default", "")
    (address,) = found["addresses"]
    assert (address["address"], address["group"], address["members"]) == ("10.0.0.3", "default", ["shop/web"])
    assert address["nodes"] == [{"node": "node3", "interface": "enp1s0", "state": "present"}]
    assert found["lastMoves"][-1]["trigger"] == "announce"
    text = purelb(desk.url, "explain", "shop/web").stdout
    assert text.startswith("shop/web is announcing since ")
    assert "10.0.0.3 of default, held since" in text
    assert "present on node3 enp1s0" in text


@pytest.mark.spec("B3")
def test_one_that_nobody_announces_is_told_what_would_change_that(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.3")
    found = explained(desk.url)
    assert (found["state"], found["addresses"][0]["nodes"]) == ("allocated", [])
    assert "no node announces" in found["why"]
    assert "running agent" in found["changes"]


@pytest.mark.spec("B3", "C16")
def test_of_several_addresses_the_silent_one_is_named(desk: Desk) -> None:
    holds = [Hold(WEB, "uid-web", ip_address(each), "default", HTTP) for each in ("10.0.0.3", "fd00::3")]
    desk.do(WEB, Observe(WEB, "uid-web"), *holds, Allocate(WEB, "uid-web", "default"))
    desk.report(Agent("node3", started_at=desk.now).add("10.0.0.3").report())
    found = explained(desk.url)
    assert found["state"] == "announcing"
    assert found["why"] == "it has every address that it asks for, and no node announces fd00::3"
    assert "a live node in the subnet" in found["changes"]


@pytest.mark.spec("B3", "C20")
def test_a_node_that_cannot_announce_it_is_named_with_its_reason_until_it_can(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.3")
    where = ("10.0.0.3", "enp1s0")
    said = "AddressConflict: 10.0.0.3 is used by 02:f0:00:00:00:01 on the link of enp1s0"
    node = Agent("node3", started_at=desk.now)
    node.move(AnnouncementTrigger.ADD, AnnouncementState.ADDING, *where)
    node.move(AnnouncementTrigger.FAIL, AnnouncementState.FAILED, *where, reason=said)
    desk.report(node.report())
    (address,) = explained(desk.url)["addresses"]
    (failure,) = address["failures"]
    assert (failure["node"], failure["reason"]) == ("node3", said)
    assert f"failed on node3 since {failure['since'][:10]}" in purelb(desk.url, "explain", "shop/web").stdout
    desk.report(node.add(*where).report())
    assert explained(desk.url)["addresses"][0]["failures"] == []


@pytest.mark.spec("B3")
def test_one_that_waits_is_told_the_reason_the_groups_tried_and_what_would_change_it(desk: Desk) -> None:
    numbers = [desk.allocate(WEB._replace(name=f"s{n}"), f"10.0.0.{n}") for n in range(8)]
    desk.withdraw(WEB._replace(name="s0"))
    desk.confirm(numbers[0], quarantine_s=86400)
    refuse(desk, DNS, Reason.POOL_EXHAUSTED, "ServiceGroup default has no free IPv4 address")
    refuse(desk, WEB, Reason.POOL_EXHAUSTED, "ServiceGroup default has no free IPv4 address")
    found = explained(desk.url)
    assert (found["state"], found["reason"]) == ("pending", "PoolExhausted")
    assert found["why"] == "PoolExhausted: ServiceGroup default has no free IPv4 address"
    assert found["changes"] == remedy("PoolExhausted")
    assert found["waitedLonger"] == 1
    (tried,) = found["groups"]
    assert tried["name"] == "default"
    numbers4 = tried["families"]["IPv4"]
    assert (numbers4["size"], numbers4["held"], numbers4["quarantined"], numbers4["free"]) == (8, 7, 1, 0)
    assert numbers4["nextFreeAt"] == (desk.now + timedelta(days=1)).isoformat() or numbers4["nextFreeAt"]
    text = purelb(desk.url, "explain", "shop/web").stdout
    assert "default IPv4: 8 addresses, 7 held, 1 in quarantine, 0 free; the next leaves quarantine" in text
    assert "1 Service has waited longer" in text
    # It is as old as it is when it is asked about, however long the machine took to get here.
    age = datetime.now(UTC) - datetime.fromisoformat(found["since"])
    said = re.search(r"\((\d+)m ago\)", text)
    assert said is not None
    assert age - timedelta(minutes=2) < timedelta(minutes=int(said.group(1))) <= age
    assert timedelta(minutes=9) < age


@pytest.mark.spec("B3")
def test_a_refused_group_is_named_with_what_is_wrong_with_it(desk: Desk) -> None:
    refuse(desk, WEB, Reason.INVALID_SERVICE_GROUP, "ServiceGroup broken cannot be used: spec.local")
    found = explained(desk.url)
    assert [(g["name"], g["refusal"]) for g in found["groups"]] == [("broken", "spec.local: '': has no pool")]
    assert "group     broken cannot be used: spec.local" in purelb(desk.url, "explain", "shop/web").stdout


@pytest.mark.spec("B3")
def test_where_the_refusal_names_no_group_all_are_shown(desk: Desk) -> None:
    refuse(desk, WEB, Reason.UNKNOWN_SERVICE_GROUP, "there is no ServiceGroup nowhere")
    assert [g["name"] for g in explained(desk.url)["groups"]] == ["broken", "default"]


@pytest.mark.spec("B3", "B5")
def test_a_stuck_release_is_shown_with_what_it_waits_for(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.3")
    desk.report(Agent("node3", started_at=desk.now).add("10.0.0.3", "enp1s0").report())
    desk.withdraw(WEB)
    found = explained(desk.url)
    assert (found["state"], found["addresses"][0]["state"]) == ("withdrawn", "releasing")
    assert found["addresses"][0]["waitsFor"] == "node node3 on enp1s0 to withdraw 10.0.0.3"
    assert "its release waits for node node3 on enp1s0 to withdraw" in purelb(desk.url, "explain", "shop/web").stdout
    # Whoever waits for an address is shown it too.
    refuse(desk, DNS, Reason.POOL_EXHAUSTED, "ServiceGroup default has no free IPv4 address")
    desk.report(Agent("node4", started_at=desk.now).report())
    (stuck,) = explained(desk.url, DNS)["stuckReleases"]
    assert (stuck["address"], stuck["waitsFor"]) == ("10.0.0.3", "node node3 on enp1s0 to withdraw 10.0.0.3")


@pytest.mark.spec("B3", "B5")
def test_a_release_that_only_a_status_can_hold_up_says_whose(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.3")
    desk.withdraw(WEB)
    waits = explained(desk.url)["addresses"][0]["waitsFor"]
    assert waits == "the allocator, which looks whether a status still shows it: that of shop/web"


@pytest.mark.spec("B3")
def test_an_address_in_quarantine_says_for_whom_and_until_when(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.3")
    desk.withdraw(WEB)
    desk.confirm(number, quarantine_s=86400)
    (address,) = explained(desk.url)["addresses"]
    assert address["state"] == "quarantined"
    assert address["quarantinedUntil"]
    assert "kept for it until" in purelb(desk.url, "explain", "shop/web").stdout


@pytest.mark.spec("B3")
def test_one_that_shares_its_address_names_the_others(desk: Desk) -> None:
    shared = ip_address("10.0.0.3")
    hold = Hold(WEB, "uid-web", shared, "default", HTTP, sharing_key="k")
    desk.do(WEB, Observe(WEB, "uid-web"), hold, Allocate(WEB, "uid-web", "default"))
    other = ServiceKey("shop", "tls")
    join = Join(other, "uid-tls", shared, "default", "k", (Port("TCP", 443),))
    plan = Plan(other, (Observe(other, "uid-tls"), join, Allocate(other, "uid-tls", "default")))
    with desk.unit() as unit:
        unit.load({other: "uid-tls"})
        unit.expect([plan])
        unit.apply(plan)
        unit.commit()
    for key in (WEB, other):
        (address,) = explained(desk.url, key)["addresses"]
        assert (address["address"], address["members"]) == ("10.0.0.3", ["shop/tls", "shop/web"])
    assert "shared by shop/tls, shop/web" in purelb(desk.url, "explain", "shop/tls").stdout


@pytest.mark.spec("B3")
def test_a_service_made_again_is_explained_by_its_live_row(desk: Desk) -> None:
    number = desk.allocate(WEB, "10.0.0.3")
    desk.withdraw(WEB)
    desk.confirm(number)
    second = "uid-2"
    hold = Hold(WEB, second, ip_address("10.0.0.4"), "default", HTTP)
    desk.do(WEB, Observe(WEB, second), hold, Allocate(WEB, second, "default"), uid=second)
    found = explained(desk.url)
    assert (found["uid"], found["state"]) == (second, "allocated")
    assert [(a["address"], a["state"]) for a in found["addresses"]] == [
        ("10.0.0.3", "quarantined"),
        ("10.0.0.4", "held"),
    ]


@pytest.mark.spec("B3")
def test_an_unknown_service_is_an_exit_code_and_a_sentence(desk: Desk) -> None:
    done = purelb(desk.url, "explain", "shop/nowhere")
    assert (done.exit_code, done.stdout) == (4, "")
    assert done.stderr == "purelb: the book does not know a Service shop/nowhere\n"
    assert purelb(desk.url, "explain", "nowhere").exit_code == 2
    assert purelb("sqlite:////nowhere/x.db", "explain", "shop/web").exit_code == 3


def test_what_a_user_wrote_does_not_reach_the_terminal_raw(desk: Desk) -> None:
    refuse(desk, WEB, Reason.INVALID_REQUEST, "requested address '\x1b[2J\nevil' is none")
    text = purelb(desk.url, "explain", "shop/web").stdout
    assert "\x1b" not in text
    assert not [line for line in text.splitlines() if line.startswith("evil")]


@pytest.mark.spec("B3")
def test_every_reason_has_a_remedy() -> None:
    assert set(REMEDIES) == set(Reason)
    assert remedy("deleted") == ""


@pytest.mark.spec("A22")
def test_pools_shows_each_group_in_numbers(desk: Desk) -> None:
    first = desk.allocate(WEB, "10.0.0.3")
    desk.allocate(DNS, "10.0.0.7")
    desk.allocate(ServiceKey("shop", "old"), "192.0.2.1")
    desk.withdraw(WEB)
    found = counted(desk.url)
    assert (found["size"], found["held"], found["releasing"], found["free"]) == (8, 2, 1, 6)
    assert found["orphaned"] == 1
    desk.confirm(first, quarantine_s=86400)
    found = counted(desk.url)
    assert (found["releasing"], found["quarantined"], found["free"]) == (0, 1, 6)
    assert found["nextFreeAt"]
    assert found["ranges"] == [
        {"range": "10.0.0.0-10.0.0.7", "subnet": "10.0.0.0/24", "size": 8, "used": 2, "reserved": 0, "free": 6}
    ]
    assert counted(desk.url, family="IPv6")["free"] == 2**64


def test_pools_as_a_table(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.3")
    done = purelb(desk.url, "pools")
    lines = [line.split() for line in done.stdout.splitlines()]
    heads = ("GROUP", "TYPE", "FAMILY", "SIZE", "HELD", "RELEASING", "QUARANTINED", "RESERVED", "FREE", "ORPHANED")
    assert lines[0] == list(heads)
    assert lines[1] == ["broken", "refused", "IPv4", "0", "0", "0", "0", "0", "0", "0"]
    assert lines[2] == ["default", "local", "IPv4", "8", "1", "0", "0", "0", "7", "0"]
    assert lines[3] == ["default", "local", "IPv6", str(2**64), "0", "0", "0", "0", str(2**64), "0"]
    assert lines[4][:4] == ["broken", "cannot", "be", "used:"]
    wide = purelb(desk.url, "pools", "-o", "wide", "--group", "default").stdout
    assert "10.0.0.0-10.0.0.7 (7 of 8 free)" in wide
    assert "3600s" in wide


def test_what_is_reserved_is_not_free_and_what_is_held_of_it_is_held(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.3")
    done = purelb(desk.url, "reserve", "10.0.0.2-10.0.0.5", "--reason", "printers")
    assert done.exit_code == 0, done.output
    found = counted(desk.url)
    assert (found["held"], found["reserved"], found["free"]) == (1, 3, 4)


def test_a_group_that_is_gone_is_shown_as_long_as_it_has_anything(desk: Desk) -> None:
    desk.allocate(WEB, "10.0.0.3")
    with desk.unit() as unit:
        unit.record_groups({}, {})
        unit.commit()
    done = purelb(desk.url, "pools")
    assert "default  gone  IPv4" in " ".join(done.stdout.split("\n")[1].split()).replace(" ", "  ")
    assert "default is gone from the cluster" in done.stdout
    assert counted(desk.url)["orphaned"] == 1
    assert purelb(desk.url, "pools", "--group", "nowhere").stdout == "the book knows no ServiceGroup nowhere\n"
