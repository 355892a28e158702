"""What the door to pyroute2 keeps from the rest: its own ways, and links and routes of odd shape."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from purelb_sm.net import KernelRefused, links, pyroute
from purelb_sm.net import rtnetlink as nl
from purelb_sm.net.routes import DefaultRoute, default_interface, default_routes
from purelb_sm.sandbox.cluster import namespace
from tests.netns.support import ip

pytestmark = pytest.mark.root

NIC = "enp1s0"


@pytest.fixture
def node(make_namespace: Callable[[], str]) -> str:
    """A namespace with one NIC."""
    name = make_namespace()
    ip(name, "link", "add", NIC, "type", "veth", "peer", "name", "far")
    ip(name, "link", "set", "far", "up")
    ip(name, "link", "set", NIC, "up")
    ip(name, "address", "add", "172.30.250.11/24", "dev", NIC)
    return name


@pytest.fixture
def sock(node: str) -> Iterator[pyroute.Socket]:
    with closing(pyroute.Socket(namespace.socket_opener(node))) as sock:
        yield sock


@pytest.fixture
def raw(node: str) -> Iterator[nl.RtnlSocket]:
    with closing(nl.RtnlSocket(namespace.socket_opener(node))) as raw:
        yield raw


def test_only_default_routes_of_the_main_table_that_lead_somewhere_count(
    node: str, sock: pyroute.Socket, raw: nl.RtnlSocket
) -> None:
    assert (default_routes(raw, 4), default_routes(raw, 6)) == ([], [])
    for words in (
        "default via 172.30.250.1 metric 10 table 100",
        "unreachable default metric 20",
        "default metric 30 nexthop via 172.30.250.2 dev enp1s0 nexthop via 172.30.250.3 dev far onlink",
        "default via 172.30.250.1 metric 40",
        "10.0.0.0/8 via 172.30.250.1 metric 5",
    ):
        ip(node, "route", "add", *words.split())
    index = links.index_of(sock, NIC)
    assert index is not None
    assert default_routes(raw, 4) == [DefaultRoute(30, index), DefaultRoute(40, index)]
    ip(node, "-6", "route", "add", "unreachable", "default", "metric", "20")
    assert default_routes(raw, 6) == []
    assert default_interface(raw, sock, 4) == NIC


def test_the_default_route_is_found_among_thousands_again_and_again(
    node: str, sock: pyroute.Socket, raw: nl.RtnlSocket
) -> None:
    """A dump of which most datagrams have no default route in them is read to its end all the same."""
    ip(node, "route", "add", "default", "via", "172.30.250.1")
    tables = ("table 100", "table main")
    routes = "".join(
        f"route add blackhole 10.{n // 250}.{n % 250}.0/24 {table}\n" for n in range(4000) for table in tables
    )
    subprocess.run(["ip", "-n", node, "-batch", "-"], input=routes, text=True, check=True)
    for _ in range(3):
        assert default_interface(raw, sock, 4) == NIC
    assert links.index_of(sock, NIC) is not None


def test_a_name_that_is_no_text_is_a_name_too(node: str, sock: pyroute.Socket) -> None:
    for name in ("lân0", os.fsdecode(b"l\xff0")):
        ip(node, "link", "add", name, "type", "bridge")
        index = links.index_of(sock, name)
        assert index is not None
        assert links.name_of(sock, index) == name
        assert name in {link.name for link in links.interfaces(sock)}


@pytest.mark.parametrize("name", ["", "nowhere0", "a-name-of-16-byte", "in/valid"])
def test_what_is_not_there_is_not_found(sock: pyroute.Socket, name: str) -> None:
    assert sock.link(name) is None
    assert sock.link(12345) is None


def test_secondaries_are_promoted_once_asked_for(node: str, sock: pyroute.Socket) -> None:
    index = links.index_of(sock, NIC)
    assert index is not None
    assert links.promote_secondaries(sock, index)
    assert not links.promote_secondaries(sock, index)
    setting = Path(f"/proc/sys/net/ipv4/conf/{NIC}/promote_secondaries")
    assert namespace.inside(node, setting.read_text) == "1\n"


def test_questions_leave_nothing_in_memory(sock: pyroute.Socket) -> None:
    def blocks_after_asking() -> int:
        for _ in range(300):
            sock.link(NIC)
        gc.collect()
        return sys.getallocatedblocks()

    # The first time, what is made once is made.
    blocks_after_asking()
    before = blocks_after_asking()
    # An answer that nobody fetches takes a block at least.
    assert blocks_after_asking() - before < 100


def test_messages_are_gone_before_the_collector_comes(sock: pyroute.Socket) -> None:
    def objects_after_asking() -> int:
        for _ in range(10):
            assert len(sock.links()) == 3
        return len(gc.get_objects())

    objects_after_asking()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        # A link has about 200 of them.
        assert objects_after_asking() - before < 1000
    finally:
        gc.enable()


async def overflow(*_words: object, **_query: object) -> object:
    raise OSError(errno.ENOBUFS, "No buffer space available")


async def silence(*_words: object, **_query: object) -> object:
    await asyncio.Event().wait()
    return []


@pytest.mark.parametrize(("broken", "number"), [(overflow, errno.ENOBUFS), (silence, errno.ETIMEDOUT)])
def test_after_a_lost_answer_the_next_question_is_answered(
    sock: pyroute.Socket, monkeypatch: pytest.MonkeyPatch, broken: object, number: int
) -> None:
    assert sock.link(NIC) is not None
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(sock._routes, "link", broken)
    monkeypatch.setattr(pyroute, "_ANSWER_TIMEOUT_S", 0.01)
    with pytest.raises(KernelRefused) as told:
        sock.link(NIC)
    assert told.value.errno == number
    monkeypatch.undo()
    assert sock.link(NIC) is not None
    assert len(os.listdir("/proc/self/fd")) == before
