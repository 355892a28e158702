"""externalTrafficPolicy Local: set back where it cannot work, kept where it can, and told once (A16, C10)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from purelb_sm.domain import names
from purelb_sm.domain.plan import plan
from purelb_sm.domain.ranges import Reach
from tests.support.domain import KEY, NOW, group, holding, pools, service, showing, world
from tests.support.office import Office, an_office, key_of

LOCAL, REMOTE = pools("10.0.0.1-10.0.0.9"), pools("10.0.0.1-10.0.0.9", kind="remote")
ALLOW = {names.ALLOW_LOCAL: "true"}


def told(office: Office, name: str = "a") -> list[str]:
    return [note.message for who, note in office.events if who == name and note.reason == "LocalOverride"]


def policy(office: Office, name: str = "a") -> str:
    return office.services[key_of(name)].external_traffic_policy


@pytest.mark.spec("A16")
@pytest.mark.parametrize("spec", [LOCAL, REMOTE])
@pytest.mark.parametrize("annotations", [{}, ALLOW])
def test_a_shared_address_cannot_go_with_policy_local(
    tmp_path: Path, spec: dict[str, Any], annotations: dict[str, str]
) -> None:
    with an_office(tmp_path, default=spec) as office:
        office.create("a", "K", "80", external_traffic_policy="Local", annotations=annotations)
        office.settle("a")
        assert (policy(office), office.shown("a")) == ("Cluster", ["10.0.0.1"])
        assert told(office) == ["externalTrafficPolicy Local cannot go with a shared address: set to Cluster"]
        office.create("b", None, "80", external_traffic_policy="Local", annotations=ALLOW)
        office.settle("b")
        office.rekey("b", "L")
        office.settle("b")
        assert policy(office, "b") == "Cluster", "a key that comes later rules it out as well"


@pytest.mark.spec("A16")
def test_a_member_that_turns_to_local_is_turned_back_with_its_wish_refused_or_not(tmp_path: Path) -> None:
    with an_office(tmp_path, default=REMOTE) as office:
        office.create("a", "K", "80")
        office.settle("a")
        for annotations in ({}, {names.ADDRESSES: "192.0.2.1"}, {names.ALLOW_SHARED_IP: "x" * 999}):
            office.edit("a", external_traffic_policy="Local", annotations=annotations)
            office.settle("a")
            assert (policy(office), office.shown("a")) == ("Cluster", ["10.0.0.1"])
        assert len(told(office)) == 3


@pytest.mark.spec("C10")
@pytest.mark.parametrize("value", ["", "false", "True", "yes"])
def test_a_local_address_cannot_go_with_policy_local(tmp_path: Path, value: str) -> None:
    with an_office(tmp_path, default=LOCAL) as office:
        annotations = {names.ALLOW_LOCAL: value}
        office.create("a", None, "80", external_traffic_policy="Local", annotations=annotations)
        office.settle("a")
        assert (policy(office), office.shown("a")) == ("Cluster", ["10.0.0.1"])
        assert told(office) == ["externalTrafficPolicy Local cannot go with a local address: set to Cluster"]
        assert all(made.silent for made in office.plan("a"))


@pytest.mark.spec("C10")
def test_policy_local_is_kept_on_a_local_address_where_the_user_insists_and_this_is_told_once(tmp_path: Path) -> None:
    with an_office(tmp_path, default=LOCAL) as office:
        office.create("a", None, "80", external_traffic_policy="Local", annotations=ALLOW)
        office.settle("a")
        office.lead()
        office.settle("a")
        assert (policy(office), office.shown("a")) == ("Local", ["10.0.0.1"])
        (note,) = told(office)
        assert "is kept on a local address" in note
        assert "is kept on a local address" in office.message("a")
        assert all(made.silent for made in office.plan("a"))
        office.edit("a", external_traffic_policy="Cluster")
        office.settle("a")
        assert "Local" not in office.message("a")
        office.edit("a", external_traffic_policy="Local")
        office.settle("a")
        assert len(told(office)) == 2


@pytest.mark.spec("C10")
def test_a_remote_address_keeps_policy_local(tmp_path: Path) -> None:
    with an_office(tmp_path, default=REMOTE) as office:
        office.create("a", None, "80", external_traffic_policy="Local")
        office.settle("a")
        assert (policy(office), told(office)) == ("Local", [])


@pytest.mark.spec("C10")
@pytest.mark.parametrize(("subnet", "reset"), [("10.0.0.0/24", True), ("10.0.1.0/24", False), (None, False)])
def test_an_address_of_a_v1_group_is_local_where_a_live_node_has_its_subnet(subnet: str | None, reset: bool) -> None:
    v1 = {"local": {"v4pools": [{"subnet": "10.0.0.0/24", "pool": "10.0.0.1-10.0.0.9", "aggregation": "/32"}]}}
    reach = Reach([ip_network(subnet)] if subnet else [])
    there = replace(world(group(spec=v1, version="v1")), reach=reach)
    view = showing(service(external_traffic_policy="Local"), "10.0.0.1")
    made = plan(KEY, view, holding("10.0.0.1"), there, NOW)
    assert (made.policy is not None) is reset


@pytest.mark.spec("C10", "A16")
def test_a_service_that_gets_nothing_keeps_its_policy(tmp_path: Path) -> None:
    with an_office(tmp_path, default=pools("10.0.0.1-10.0.0.1")) as office:
        office.create("first", "K", "80")
        office.create("a", "K", "80", external_traffic_policy="Local")
        office.settle("first", "a")
        assert (office.refusal("a"), policy(office), told(office)) == ("PortConflict", "Local", [])
