"""The emulated API server answers what a real one was recorded to answer, scenario by scenario.

With `--kubeconfig FILE` the same requests go to a real server, which shows whether the recordings still hold.
"""

import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from purelb_sm.sandbox.apiserver import ApiServer, serve
from tests.contract.replay import RECORDINGS, SCENARIOS, Replay, differences, loosened

TOKEN = "a-good-token"
# Scenarios that show something which another one left behind.
AFTER = {"tables": "events"}
# What says more about the version and set-up of a server than about its behaviour.
OWN = {"discovery"}


def load(name: str) -> dict[str, Any]:
    scenario: dict[str, Any] = json.loads((RECORDINGS / f"{name}.json").read_text())
    return scenario


@pytest.fixture
async def target(request: pytest.FixtureRequest) -> AsyncIterator[Replay]:
    """A fresh emulation, or the server of `--kubeconfig`, with an empty namespace `contract`."""
    path = request.config.getoption("--kubeconfig")
    if path is not None:
        async with real(Path(path)) as replay:
            await prepare(replay)
            yield replay
        return
    server = ApiServer(tokens={TOKEN: "kubernetes-admin"})
    async with serve(server) as url, aiohttp.ClientSession() as session:
        replay = Replay(session, url, {"Authorization": f"Bearer {TOKEN}"})
        await prepare(replay)
        yield replay


class real:  # noqa: N801 (used as a function)
    """A Replay on the current context of a kubeconfig."""

    def __init__(self, path: Path) -> None:
        config = yaml.safe_load(path.read_text())
        named = {kind: {e["name"]: e[kind] for e in config[f"{kind}s"]} for kind in ("context", "cluster", "user")}
        context = named["context"][config["current-context"]]
        self.cluster = named["cluster"][context["cluster"]]
        self.user = named["user"][context["user"]]

    async def __aenter__(self) -> Replay:
        connector = aiohttp.TCPConnector(ssl=self.tls()) if self.cluster["server"].startswith("https") else None
        headers = {"Authorization": f"Bearer {self.user['token']}"} if self.user.get("token") else {}
        self.session = aiohttp.ClientSession(connector=connector)
        return Replay(self.session, self.cluster["server"], headers)

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    def tls(self) -> ssl.SSLContext:
        authority = self.cluster.get("certificate-authority-data")
        context = ssl.create_default_context(
            cafile=self.cluster.get("certificate-authority"),
            cadata=base64.b64decode(authority).decode() if authority else None,
        )
        with tempfile.TemporaryDirectory() as folder:
            files = {}
            for key in ("client-certificate", "client-key"):
                files[key] = self.user.get(key)
                if self.user.get(f"{key}-data"):
                    files[key] = f"{folder}/{key}"
                    Path(files[key]).write_bytes(base64.b64decode(self.user[f"{key}-data"]))
            if files["client-certificate"]:
                context.load_cert_chain(files["client-certificate"], files["client-key"])
        return context


async def prepare(replay: Replay) -> None:
    """The namespace exists, and no Service is in it."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "contract"}}
    async with replay.session.post(f"{replay.url}/api/v1/namespaces", json=body, headers=replay.headers) as response:
        assert response.status in (201, 409), await response.text()
    await forget_services(replay)


async def forget_services(replay: Replay) -> None:
    services = f"{replay.url}/api/v1/namespaces/contract/services"
    async with replay.session.get(services, headers=replay.headers) as response:
        items = (await response.json())["items"]
    for item in items:
        async with replay.session.delete(f"{services}/{item['metadata']['name']}", headers=replay.headers) as response:
            assert response.status == 200


@pytest.mark.spec("D3")
@pytest.mark.parametrize("name", SCENARIOS)
async def test_every_recorded_answer_is_given(name: str, target: Replay, request: pytest.FixtureRequest) -> None:
    if name in OWN and request.config.getoption("--kubeconfig"):
        pytest.skip("what a server says of itself differs from server to server")
    if name in AFTER:
        await target.run(load(AFTER[name]))
        await forget_services(target)
        target.differences.clear()
    await target.run(load(name))
    assert not target.differences, "\n".join(target.differences)


def test_all_scenarios_are_here() -> None:
    assert len(SCENARIOS) == 16


class TestTheComparison:
    """A comparison that is too kind would let every test above pass."""

    def test_a_missing_an_added_and_a_changed_field_are_told(self) -> None:
        assert differences({"a": 1}, {}) == [".a is missing"]
        assert differences({}, {"a": 1}) == [".a is too much: 1"]
        assert differences({"a": {"b": 1}}, {"a": {"b": 2}}) == [".a.b is 2, not 1"]

    def test_an_empty_list_is_not_an_absent_one(self) -> None:
        assert differences({"items": []}, {"items": None})

    def test_true_is_not_one(self) -> None:
        assert differences({"a": True}, {"a": 1})

    def test_a_placeholder_fits_its_kind_only(self) -> None:
        assert not differences("<ipv4>", "10.0.0.1")
        assert differences("<ipv4>", "fd00::1")
        assert differences("<nodePort>", "31000")
        assert not differences("<nodePort>", 31000)

    def test_of_a_refusal_only_the_wording_may_differ(self) -> None:
        causes = [{"reason": "FieldValueInvalid", "message": "m", "field": "spec.a"}]
        recorded = loosened(
            {
                "kind": "Status",
                "message": 'Service "x" is invalid: spec.a: m',
                "reason": "Invalid",
                "details": {"causes": causes},
            }
        )
        answer = {**recorded, "message": 'Service "x" is invalid: other words'}
        assert not differences(recorded, answer)
        assert differences(recorded, {**answer, "message": 'Service "y" is invalid: spec.a: m'})
        elsewhere = [{"reason": "FieldValueInvalid", "message": "m", "field": "spec.b"}]
        assert differences(recorded, {**answer, "details": {"causes": elsewhere}})
