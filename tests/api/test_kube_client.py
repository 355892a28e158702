"""The client's errors and endings, against a server that misbehaves. Each trap of the package has a test here, so that
an upgrade of it shows what changed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from purelb_sm.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    Throttled,
    Unavailable,
)
from purelb_sm.kube.client import MERGE_PATCH, KubeClient, Silent
from tests.support.kube_faults import Exchange, FaultServer, until

Handler = Callable[[Exchange], Awaitable[None]]


async def lines_of(client: KubeClient, idle_s: float = 5.0) -> list[bytes]:
    async with aclosing(client.stream("/x", {"watch": "true"}, idle_s=idle_s)) as stream:
        return [line async for line in stream if line]


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (400, "BadRequest", Invalid),
        (401, "Unauthorized", Forbidden),
        (403, "Forbidden", Forbidden),
        (404, "NotFound", NotFound),
        (405, "MethodNotAllowed", Invalid),
        (409, "Conflict", Conflict),
        (409, "AlreadyExists", AlreadyExists),
        (410, "Expired", Gone),
        (415, "UnsupportedMediaType", Invalid),
        (422, "Invalid", Invalid),
        (429, "TooManyRequests", Throttled),
        (500, "InternalError", Unavailable),
        (503, "ServiceUnavailable", Unavailable),
        (504, "Timeout", Unavailable),
    ],
)
async def test_each_status_has_its_error(code: int, reason: str, error: type[KubeError]) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.refuse(code, reason, "the server's own words")

    async with FaultServer(handler) as server, KubeClient.at(server.url) as client:
        with pytest.raises(error) as caught:
            await client.request("GET", "/x")
        assert type(caught.value) is error
        assert (caught.value.status, caught.value.kind_reason) == (code, reason)
        assert "the server's own words" in str(caught.value)
        assert len(server.requests) == 1, "nothing is retried behind the caller's back"


async def test_retry_after_comes_from_the_header_or_from_the_status_object() -> None:
    async def handler(exchange: Exchange) -> None:
        if exchange.path == "/header":
            await exchange.refuse(429, "TooManyRequests", Retry_After="7")
        elif exchange.path == "/date":
            await exchange.refuse(429, "TooManyRequests", Retry_After="Wed, 21 Oct 2026 07:28:00 GMT")
        else:
            await exchange.reply({"reason": "Timeout", "details": {"retryAfterSeconds": 3}}, 504)

    async with FaultServer(handler) as server, KubeClient.at(server.url) as client:
        for path, expected in (("/header", 7.0), ("/date", None), ("/status", 3.0)):
            with pytest.raises(KubeError) as caught:
                await client.request("GET", path)
            assert caught.value.retry_after_s == expected


async def test_a_refusal_in_plain_text_keeps_its_status() -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.raw(404, b"404 page not found\n", 19)

    async with FaultServer(handler) as server, KubeClient.at(server.url) as client:
        with pytest.raises(NotFound):
            await client.request("GET", "/x")


@pytest.mark.spec("E2")
async def test_an_answer_cut_short_is_unavailable() -> None:
    async def handler(exchange: Exchange) -> None:
        if exchange.path == "/short":
            await exchange.raw(200, b'{"metadata":{', 100)
            exchange.abort()
        elif exchange.path == "/json":
            await exchange.reply(b'{"metadata":{')
        elif exchange.path == "/utf8":
            await exchange.reply(b'"\xff\xfe"')
        elif exchange.path == "/deep":
            await exchange.reply(b"[" * 100_000)
        else:
            exchange.abort()

    decode = msgspec.json.Decoder(object).decode
    async with FaultServer(handler) as server, KubeClient.at(server.url) as client:
        for path in ("/short", "/json", "/utf8", "/deep", "/abort"):
            with pytest.raises(Unavailable):
                await client.get(path, decode)


@pytest.mark.spec("E2")
async def test_a_server_that_never_answers_is_unavailable_after_the_timeout() -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.hang()

    async with FaultServer(handler) as server, KubeClient.at(server.url, timeout_s=0.1) as client:
        with pytest.raises(Unavailable):
            await client.request("GET", "/x")


@pytest.mark.spec("E2")
async def test_a_refused_connection_is_unavailable() -> None:
    async def handler(exchange: Exchange) -> None: ...

    async with FaultServer(handler) as server:
        url = server.url
    async with KubeClient.at(url) as client:
        with pytest.raises(Unavailable):
            await client.request("GET", "/x")
        with pytest.raises(Unavailable):
            await lines_of(client)


async def test_a_dict_goes_out_as_it_is_with_the_content_type_that_was_asked_for() -> None:
    """The package turns some patches into strategic merges, and drops fields that its models do not know."""
    seen: list[Exchange] = []

    async def handler(exchange: Exchange) -> None:
        seen.append(exchange)
        await exchange.reply(exchange.body)

    body = {"metadata": {"annotations": {"purelb.io/x": None}}, "brandNewField": [{"a": None}, 1, True, "ü"]}
    async with FaultServer(handler) as server, KubeClient.at(server.url, component="purelb-test") as client:
        data = await client.request("PATCH", "/x", body=body, content_type=MERGE_PATCH)
    assert json.loads(data) == body
    assert seen[0].headers["content-type"] == MERGE_PATCH
    assert seen[0].headers["accept"] == "application/json"
    assert seen[0].headers["user-agent"].startswith("purelb-test/")


async def test_query_values_arrive_as_they_were_written() -> None:
    """Continue tokens and selectors are full of characters that mean something in a URL."""
    query = {"continue": "ab+/=&c%2B", "fieldSelector": "spec.type=LoadBalancer,metadata.name!=a b", "u": "ü"}

    async def handler(exchange: Exchange) -> None:
        await exchange.reply({})

    async with FaultServer(handler) as server, KubeClient.at(server.url) as client:
        await client.request("GET", "/x", query=query)
        assert server.requests[0].query == query


async def test_proxies_are_looked_for_only_where_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)

    async def handler(exchange: Exchange) -> None:
        await exchange.reply({})

    async with FaultServer(handler) as server, KubeClient.at(server.url) as client:
        await client.request("GET", "/x")
        assert len(server.requests) == 1


# Watches.


async def test_a_watch_gives_lines_however_they_are_cut_into_chunks() -> None:
    text = b'{"a":1}\n{"b":"\xc3\xbc"}\n\n{"c":3}\n'

    async def handler(exchange: Exchange) -> None:
        await exchange.begin()
        for i in range(len(text)):
            await exchange.chunk(text[i : i + 1])
        await exchange.end()

    async with FaultServer(handler) as server, KubeClient.at(server.url) as client:
        assert await lines_of(client) == [b'{"a":1}', b'{"b":"\xc3\xbc"}', b'{"c":3}']


async def test_a_line_of_megabytes_is_one_line() -> None:
    line = b'{"x":"' + b"y" * 3_000_000 + b'"}'

    async def handler(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(line + b"\n")
        await exchange.end()

    async with FaultServer(handler) as server, KubeClient.at(server.url) as client:
        assert await lines_of(client) == [line]


@pytest.mark.spec("E2")
async def test_a_silent_watch_ends_after_its_idle_time() -> None:
    """No byte and no FIN: the package's own watch would wait for ever."""

    async def handler(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(b'{"a":1}\n')
        await exchange.hang()

    async with FaultServer(handler) as server, KubeClient.at(server.url) as client:
        with pytest.raises(Silent):
            await lines_of(client, idle_s=0.2)


async def test_a_watch_outlives_the_timeout_of_requests() -> None:
    more = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(b"1\n")
        await more.wait()
        await exchange.chunk(b"2\n")
        await exchange.end()

    async with FaultServer(handler) as server, KubeClient.at(server.url, timeout_s=0.05) as client:
        asyncio.get_running_loop().call_later(0.2, more.set)
        assert await lines_of(client) == [b"1", b"2"]


@pytest.mark.parametrize("ending", ["abort", "clean"])
async def test_a_watch_cut_within_a_line_is_unavailable(ending: str) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(b'{"a":1}\n{"b"')
        if ending == "clean":
            await exchange.end()
        else:
            exchange.abort()

    async with FaultServer(handler) as server, KubeClient.at(server.url) as client:
        got: list[bytes] = []

        async def read() -> None:
            async with aclosing(client.stream("/x", {}, idle_s=5)) as stream:
                async for line in stream:
                    got.append(line)  # noqa: PERF401  # what came before the cut must have been given

        with pytest.raises(Unavailable):
            await read()
        if ending == "clean":
            assert b'{"a":1}' in got


async def test_a_watch_that_is_left_closes_its_connection() -> None:
    closed = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await exchange.begin()
        try:
            while True:
                await exchange.chunk(b"1\n")
                await asyncio.sleep(0.005)
        finally:
            closed.set()

    async with FaultServer(handler) as server, KubeClient.at(server.url) as client:
        async with aclosing(client.stream("/x", {}, idle_s=5)) as stream:
            async for line in stream:
                if line:
                    break
        await until(closed.is_set)


async def test_a_refused_watch_has_the_error_of_its_status() -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.refuse(410, "Expired")

    async with FaultServer(handler) as server, KubeClient.at(server.url) as client:
        with pytest.raises(Gone):
            await lines_of(client)


# Where the configuration comes from.


def kubeconfig(path: Path, url: str, token: str = "first") -> Path:
    user = {"tokenFile": str(path.with_suffix(".token"))}
    path.with_suffix(".token").write_text(token)
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    }
    path.write_text(json.dumps(content))
    return path


async def test_the_kubeconfig_comes_from_the_argument_or_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.reply({})

    async with FaultServer(handler) as server:
        file = kubeconfig(tmp_path / "config", server.url)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
        async with await KubeClient.connect(str(file)) as client:
            await client.request("GET", "/x")
            assert client.host == server.url
        with pytest.raises(Unavailable, match="absent"):
            await KubeClient.connect()
        monkeypatch.setenv("KUBECONFIG", str(file))
        async with await KubeClient.connect() as client:
            await client.request("GET", "/x")
        assert [r.headers["authorization"] for r in server.requests] == ["Bearer first"] * 2


async def test_a_kubeconfig_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    broken = tmp_path / "config"
    for content in ("", "{}", "][", '{"current-context": "x", "contexts": []}', '{"clusters": 5}'):
        broken.write_text(content)
        with pytest.raises(Unavailable, match="no usable cluster configuration"):
            await KubeClient.connect(str(broken))


async def test_a_renewed_token_is_used_after_a_refusal(tmp_path: Path) -> None:
    async def handler(exchange: Exchange) -> None:
        if exchange.headers.get("authorization") == "Bearer second":
            await exchange.reply({})
        else:
            await exchange.refuse(401, "Unauthorized")

    async with FaultServer(handler) as server:
        file = kubeconfig(tmp_path / "config", server.url)
        async with await KubeClient.connect(str(file)) as client:
            with pytest.raises(Forbidden):
                await client.request("GET", "/x")
            assert len(server.requests) == 2, "asked again once, not for ever"
            file.with_suffix(".token").write_text("second")
            await client.request("GET", "/x")


async def test_in_a_cluster_the_token_file_is_read_again_by_the_monotonic_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes.aio.client import Configuration

    from purelb_sm.kube.client import _TokenFile

    now = [0.0]
    file = tmp_path / "token"
    file.write_text("one\n")
    configuration = Configuration()
    token = _TokenFile(file, configuration, lambda: now[0])
    token.maybe_read()
    assert configuration.api_key["BearerToken"] == "Bearer one"
    file.write_text("two\n")
    now[0] = 59.0
    token.maybe_read()
    assert configuration.api_key["BearerToken"] == "Bearer one"
    now[0] = 61.0
    token.maybe_read()
    assert configuration.api_key["BearerToken"] == "Bearer two"
    file.unlink()
    now[0] = 200.0
    token.maybe_read()
    assert configuration.api_key["BearerToken"] == "Bearer two"


# What it costs.

WEIGHT = """
import asyncio, json, sys
from purelb_sm.kube import events, leases, publish, queue, reflector, reports
from purelb_sm.kube.objects import decode_service

def item(i):
    meta = {"name": f"svc-{i}", "namespace": f"ns-{i % 50}", "uid": f"uid-{i:032d}", "resourceVersion": str(i)}
    meta["annotations"] = {"purelb.io/allocated-by": "PureLB", "purelb.io/allocated-from": "g", "x": "y" * 2000}
    ports = [{"port": 80, "protocol": "TCP", "name": "http"}, {"port": 443, "protocol": "TCP", "name": "https"}]
    spec = {"type": "LoadBalancer", "clusterIP": f"10.0.{i // 256}.{i % 256}", "ipFamilies": ["IPv4"], "ports": ports}
    condition = {"type": "purelb.io/Allocated", "status": "True", "reason": "Allocated", "message": "m"}
    ingress = [{"ip": f"172.30.{i // 256}.{i % 256}", "ipMode": "VIP"}]
    return {"metadata": meta, "spec": spec, "status": {"loadBalancer": {"ingress": ingress}, "conditions": [condition]}}

views = [decode_service(json.dumps(item(i)).encode()) for i in range(10_000)]
heavy = [m for m in sys.modules if m.startswith(("kubernetes.aio.client.models.", "kubernetes.aio.client.api."))]
with open("/proc/self/status") as file:
    rss = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
print(json.dumps({"heavy": heavy, "rss_mib": rss / 1024}))
"""


async def test_ten_thousand_services_fit_into_an_agent() -> None:
    """The package's models alone would take 230 MB for them; none of its models is even loaded."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WEIGHT, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    weight = json.loads(out)
    assert weight["heavy"] == []
    assert weight["rss_mib"] < 100
