"""Particular addresses, as Services ask for them of an API server, with the allocator behind it (spec A10, A11)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from tests.support.product import Cluster, a_cluster, a_database, an_allocator, local_group, service_object
from tests.support.waiting import eventually

DUAL = {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]}
POOLS = ("172.30.250.53-172.30.250.60", "fd30:250::53-fd30:250::60")


def asking(name: str, addresses: str, **spec: Any) -> dict[str, Any]:
    return service_object(name, annotations={"purelb.io/addresses": addresses}, **spec)


def held(database: str) -> dict[str, str]:
    """Who holds what, as the book has it."""
    engine = create_engine(database)
    try:
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT address_text, claim FROM allocation WHERE state = 'held'"))
            return {str(address): str(claim) for address, claim in rows}
    finally:
        engine.dispose()


def events_of(cluster: Cluster, name: str) -> list[str]:
    return sorted(e["reason"] for e in cluster.events() if e["involvedObject"]["name"] == name)


@pytest.mark.spec("A10")
async def test_addresses_of_both_families_are_given_in_the_order_of_ip_families(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(*POOLS)) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(asking("both", " fd30:250::58 ,  172.30.250.58 ", **DUAL))
            cluster.create(asking("one", "172.30.250.57", **DUAL))
            assert await cluster.given("both") == ["172.30.250.58", "fd30:250::58"]
            assert await cluster.given("one") == ["172.30.250.57", "fd30:250::53"]


@pytest.mark.spec("A11")
async def test_where_the_second_cannot_be_had_nothing_of_the_first_is_kept(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(*POOLS)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            cluster.create(asking("owner", "fd30:250::58", ipFamilies=["IPv6"], ipFamilyPolicy="SingleStack"))
            assert await cluster.given("owner") == ["fd30:250::58"]
            cluster.create(asking("greedy", "172.30.250.53,fd30:250::58", **DUAL))
            refused = await eventually(partial(cluster.condition, "greedy"))
            assert (refused["status"], refused["reason"]) == ("False", "AddressInUse")
            assert "owner" not in refused["message"]
            await eventually(lambda: events_of(cluster, "greedy") == ["AllocationFailed"])
            assert not [e for e in cluster.events() if "owner" in e["message"]]
            assert held(database) == {"fd30:250::58": "test/owner"}
            # The first was not kept: the next who comes gets it. The holder was not touched.
            cluster.create(service_object("next"))
            assert await cluster.given("next") == ["172.30.250.53"]
            assert cluster.shown("owner") == ["fd30:250::58"]
            assert events_of(cluster, "owner") == ["IPAllocated"]


@pytest.mark.spec("A10", "A29")
async def test_an_address_asked_for_is_given_when_its_holder_is_gone(tmp_path: Path) -> None:
    async with a_cluster(tmp_path, local_group(*POOLS)) as cluster:
        async with an_allocator(cluster, a_database(tmp_path)):
            cluster.create(asking("first", "172.30.250.58"))
            await cluster.given("first")
            cluster.create(asking("second", "172.30.250.58"))
            refused = await eventually(partial(cluster.condition, "second"))
            assert refused["reason"] == "AddressInUse"
            cluster.delete_service("first")
            assert await cluster.given("second") == ["172.30.250.58"]


@pytest.mark.spec("A10")
async def test_warnings_are_said_once_whatever_happens_to_the_service_later(tmp_path: Path) -> None:
    routed = local_group("172.30.250.200-172.30.250.210", name="other", kind="remote")
    async with a_cluster(tmp_path, local_group(*POOLS), routed) as cluster:
        database = a_database(tmp_path)
        group = {"purelb.io/service-group": "default"}
        async with an_allocator(cluster, database):
            cluster.create(service_object("echo", annotations=group, loadBalancerIP="172.30.250.205"))
            assert await cluster.given("echo") == ["172.30.250.205"]
            wanted = ["ConfigurationWarning", "DeprecationWarning", "IPAllocated"]
            await eventually(lambda: events_of(cluster, "echo") == wanted)
            await cluster.patch_service("echo", {"metadata": {"labels": {"irrelevant": "yes"}}})
        async with an_allocator(cluster, database):
            cluster.create(service_object("later"))
            await cluster.given("later")
            await eventually(lambda: events_of(cluster, "later") == ["IPAllocated"])
        assert events_of(cluster, "echo") == wanted
        assert all(e.get("count", 1) == 1 for e in cluster.events() if e["involvedObject"]["name"] == "echo")


@pytest.mark.spec("A27")
async def test_one_service_on_tcp_and_udp_without_node_ports_under_a_relaxed_name(tmp_path: Path) -> None:
    ports = [
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
        {"name": "dns-udp", "port": 53, "protocol": "UDP"},
    ]
    async with a_cluster(tmp_path, local_group(*POOLS)) as cluster:
        database = a_database(tmp_path)
        async with an_allocator(cluster, database):
            # KEP-5311: the name of a Service is a DNS label of RFC 1123, which may begin with a digit.
            cluster.create(service_object("4dns", ports=ports, allocateLoadBalancerNodePorts=False))
            assert await cluster.given("4dns") == ["172.30.250.53"]
            cluster.create(service_object("0" * 63, ports=ports, allocateLoadBalancerNodePorts=False))
            assert await cluster.given("0" * 63) == ["172.30.250.54"]
            assert all("nodePort" not in port for port in cluster.service("4dns")["spec"]["ports"])
            assert held(database) == {"172.30.250.53": "test/4dns", "172.30.250.54": "test/" + "0" * 63}
            engine = create_engine(database)
            with engine.connect() as connection:
                claims = connection.execute(text("SELECT allocation_id, protocol, port FROM port_claim")).all()
            engine.dispose()
            assert sorted(tuple(c)[1:] for c in claims) == [("TCP", 53)] * 2 + [("UDP", 53)] * 2
            cluster.delete_service("4dns")
            await eventually(lambda: "172.30.250.53" not in held(database))
