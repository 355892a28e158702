"""What a cluster decides before it touches the machine: its layout, its kubeconfigs, what a frame means."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from purelb_sm.net.neighbours import frames
from purelb_sm.sandbox.cluster import client, kubeconfig
from purelb_sm.sandbox.cluster.layout import LOCAL_V4, LOCAL_V6, ROUTED, plan

MAC = bytes.fromhex("02fc0000a1ff")

REAL: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [
        {"name": "a", "cluster": {"server": "https://api.example.org:7443", "certificate-authority": "ca.crt"}},
        {"name": "b", "cluster": {"server": "https://192.0.2.1", "tls-server-name": "other"}},
        {"name": "c", "cluster": {"server": "http://[2001:db8::1]:8080"}},
        {"name": "d", "cluster": {"server": "ftp://api.example.org"}},
    ],
    "users": [{"name": "me", "user": {"client-certificate": "me.crt", "client-key": "/keys/me.key"}}],
    "contexts": [{"name": name, "context": {"cluster": name, "user": "me"}} for name in "abcd"],
    "current-context": "a",
}


@pytest.fixture
def real(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(REAL))
    return path


def test_nodes_are_numbered_alike_in_both_families() -> None:
    layout = plan(12, (LOCAL_V4, LOCAL_V6), ROUTED)
    assert layout.nodes[0] == "node1"
    assert [str(one) for one in layout.addresses("node3")] == ["172.30.250.13", "fd30:250::13"]
    assert [str(one) for one in layout.addresses("node12")] == ["172.30.250.22", "fd30:250::22"]
    assert [str(layout.router(subnet)) for subnet in layout.local] == ["172.30.250.1", "fd30:250::1"]


def test_more_nodes_than_addresses_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        plan(6, (ip_network("192.0.2.0/28"),), ())


def test_a_routed_network_needs_a_way_to_the_nodes() -> None:
    with pytest.raises(ValueError, match="family"):
        plan(2, (LOCAL_V4,), ROUTED)


@pytest.mark.parametrize(
    ("context", "upstream"),
    [(None, ("api.example.org", 7443)), ("b", ("192.0.2.1", 443)), ("c", ("2001:db8::1", 8080))],
)
def test_the_upstream_is_the_server_of_the_context(real: Path, context: str | None, upstream: object) -> None:
    assert kubeconfig.upstream_of(real, context) == upstream


def test_nodes_check_the_servers_certificate_against_its_own_name(real: Path, tmp_path: Path) -> None:
    written = kubeconfig.for_real_api(tmp_path / "node", real)
    content = yaml.safe_load(written.read_text())
    assert content["clusters"][0]["cluster"] == {
        "server": "https://127.0.0.1:6443",
        "tls-server-name": "api.example.org",
        "certificate-authority": str(tmp_path / "ca.crt"),
    }
    assert content["users"][0]["user"]["client-key"] == "/keys/me.key"
    assert written.stat().st_mode & 0o777 == 0o600
    other = kubeconfig.for_real_api(tmp_path / "other", real, "b", address="::1")
    content = yaml.safe_load(other.read_text())
    assert content["current-context"] == "b"
    assert content["clusters"][1]["cluster"] == {"server": "https://[::1]:6443", "tls-server-name": "other"}
    plain = kubeconfig.for_real_api(tmp_path / "plain", real, "c")
    assert yaml.safe_load(plain.read_text())["clusters"][2]["cluster"] == {"server": "http://127.0.0.1:6443"}


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "clusters: 3", "current-context: x", "contexts: [null, 3]", "contexts: 3"]
)
def test_a_kubeconfig_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(kubeconfig.InvalidKubeconfig):
        kubeconfig.upstream_of(path)


@pytest.mark.parametrize("context", ["d", "nowhere"])
def test_a_context_that_leads_nowhere_is_named(real: Path, context: str) -> None:
    with pytest.raises(kubeconfig.InvalidKubeconfig):
        kubeconfig.upstream_of(real, context)


def test_the_emulated_api_needs_no_user(tmp_path: Path) -> None:
    written = kubeconfig.for_emulated_api(tmp_path / "config")
    assert kubeconfig.upstream_of(written) == ("127.0.0.1", 6443)


@pytest.mark.parametrize("text", ["172.30.250.53", "fd30:250::53"])
def test_our_announcements_are_seen_as_announcements(text: str) -> None:
    address = ip_address(text)
    for frame in frames(MAC, address):
        sighting = client.parse(frame, 1.0)
        assert sighting is not None
        assert (sighting.address, sighting.mac, sighting.gratuitous) == (address, MAC.hex(":"), True)


@pytest.mark.parametrize("text", ["172.30.250.53", "fd30:250::53"])
def test_a_frame_cut_short_is_nothing(text: str) -> None:
    frame = frames(MAC, ip_address(text))[0]
    whole = 42 if "." in text else 78
    assert [length for length in range(len(frame) + 1) if client.parse(frame[:length], 1.0)] == list(
        range(whole, len(frame) + 1)
    )
