"""What clients of the emulated API server rely on besides the recordings: watches, pages, restarts, faults."""

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from purelb_sm.sandbox.apiserver import ApiServer, Fault, lists, serve, write_kubeconfig
from tests.api.sandbox_client import SERVICES, Api, running, service, started


@pytest.fixture
async def server() -> ApiServer:
    return ApiServer(bookmark_s=0.2)


@pytest.fixture
async def api(server: ApiServer) -> AsyncIterator[Api]:
    async with running(server) as client:
        yield client


class TestWatch:
    async def test_a_change_reaches_every_watcher_once_and_in_order(self, api: Api) -> None:
        async with contextlib.AsyncExitStack() as stack:
            watches = [await stack.enter_async_context(api.watch(SERVICES)) for _ in range(5)]
            for name in ("a", "b"):
                await api.post(SERVICES, service(name))
            await api.delete(f"{SERVICES}/a")
            for each in watches:
                seen = await each.take(4)
                assert seen == [("ADDED", "kubernetes"), ("ADDED", "a"), ("ADDED", "b"), ("DELETED", "a")]

    async def test_versions_only_grow_and_match_the_stored_object(self, api: Api) -> None:
        async with api.watch(SERVICES) as watch:
            await watch.next()
            made = await api.post(SERVICES, service("a"))
            patched = await api.merge(f"{SERVICES}/a", {"metadata": {"labels": {"x": "1"}}})
            events = [await watch.next(), await watch.next()]
            versions = [e["object"]["metadata"]["resourceVersion"] for e in events if e]
            assert versions == [made.rv, patched.rv]
            assert int(made.rv) < int(patched.rv)

    async def test_a_bookmark_carries_a_version_from_which_nothing_is_missed(self, api: Api) -> None:
        async with api.watch(f"{SERVICES}?allowWatchBookmarks=true&fieldSelector=metadata.name=none") as watch:
            made = await api.post(SERVICES, service("a"))
            while (event := await watch.next()) and int(event["object"]["metadata"]["resourceVersion"]) < int(made.rv):
                assert event["type"] == "BOOKMARK"
            assert event is not None
        await api.post(SERVICES, service("b"))
        version = event["object"]["metadata"]["resourceVersion"]
        async with api.watch(f"{SERVICES}?resourceVersion={version}") as watch:
            assert await watch.take(1) == [("ADDED", "b")]

    async def test_a_bookmark_says_nothing_of_what_happened_while_the_events_before_it_were_written(self) -> None:
        server = ApiServer()
        asked = {"allowWatchBookmarks": "true", "resourceVersion": str(server.store.rv)}
        query = lists.parse(server.cluster, server.resource("v1", "Service"), None, "", asked, table=False)
        watch = lists.Watch(server.cluster, query, bookmark_s=0.0)
        watch.start()
        batches = watch.batches(asyncio.Event())
        seen: list[tuple[str, int]] = []

        async def take() -> None:
            for line in (await anext(batches)).splitlines():
                event = json.loads(line)
                seen.append((event["type"], int(event["object"]["metadata"]["resourceVersion"])))

        for name in "abc":
            # The reader is slow: this happens before it takes what follows the last one.
            server.create(service(name))
            await take()
        while sum(kind == "ADDED" for kind, _ in seen) < 3:
            await take()
        for index, (kind, version) in enumerate(seen):
            later = [v for k, v in seen[index + 1 :] if k != "BOOKMARK"]
            assert kind != "BOOKMARK" or all(v > version for v in later), seen

    async def test_no_bookmark_comes_unasked(self, api: Api) -> None:
        async with api.watch(f"{SERVICES}?timeoutSeconds=1&fieldSelector=metadata.name=none") as watch:
            assert await watch.next() is None

    async def test_a_no_op_patch_makes_no_event(self, api: Api) -> None:
        made = await api.post(SERVICES, service("a"))
        async with api.watch(f"{SERVICES}?resourceVersion={made.rv}") as watch:
            same = await api.merge(f"{SERVICES}/a", {"spec": {"type": "LoadBalancer"}})
            assert same.rv == made.rv
            await api.post(SERVICES, service("z"))
            assert await watch.take(1) == [("ADDED", "z")]

    async def test_an_object_that_enters_a_selection_is_added_to_it(self, api: Api) -> None:
        await api.post(SERVICES, service("a"))
        async with api.watch(f"{SERVICES}?labelSelector=tier%20in%20(web)&timeoutSeconds=15") as watch:
            await api.merge(f"{SERVICES}/a", {"metadata": {"labels": {"tier": "web"}}})
            await api.merge(f"{SERVICES}/a", {"metadata": {"labels": {"tier": "db"}}})
            assert await watch.take(2) == [("ADDED", "a"), ("DELETED", "a")]

    async def test_a_type_change_away_is_deleted_for_who_selects_load_balancers(self, api: Api) -> None:
        made = await api.post(SERVICES, service("a"))
        path = f"/api/v1/services?fieldSelector=spec.type=LoadBalancer&resourceVersion={made.rv}"
        async with api.watch(path) as watch:
            await api.merge(f"{SERVICES}/a", {"spec": {"type": "ClusterIP"}})
            assert await watch.take(1) == [("DELETED", "a")]

    async def test_history_is_bounded_and_what_left_it_is_gone(self) -> None:
        server = ApiServer(history=5)
        async with running(server) as api:
            first = await api.post(SERVICES, service("a"))
            for i in range(12):
                await api.merge(f"{SERVICES}/a", {"metadata": {"labels": {"i": str(i)}}})
            assert len(server.store.bucket("services").history) < 10
            async with api.watch(f"{SERVICES}?resourceVersion={first.rv}") as watch:
                event = await watch.next()
            assert event is not None
            assert (event["type"], event["object"]["code"]) == ("ERROR", 410)

    async def test_compaction_can_be_forced_from_outside(self, api: Api) -> None:
        made = await api.post(SERVICES, service("a"))
        await api.post(SERVICES, service("b"))
        await api.post("/sandbox/compact", {})
        async with api.watch(f"{SERVICES}?resourceVersion={made.rv}") as watch:
            event = await watch.next()
            assert event is not None
            assert event["object"]["reason"] == "Expired"
            assert await watch.next() is None

    async def test_a_version_from_the_future_is_refused(self, api: Api) -> None:
        answer = await api.get(f"{SERVICES}?resourceVersion=999999999")
        assert (answer.status, answer.body["reason"]) == (504, "Timeout")
        async with api.watch(f"{SERVICES}?resourceVersion=999999999") as watch:
            event = await watch.next()
        assert event is not None
        assert event["object"]["code"] == 504

    async def test_a_watcher_that_leaves_is_forgotten(self, server: ApiServer, api: Api) -> None:
        async with api.watch(SERVICES) as watch:
            await watch.next()
            assert server.store.bucket("services").watchers
        async with asyncio.timeout(10):
            while server.store.bucket("services").watchers:
                await asyncio.sleep(0.01)


class TestLists:
    async def test_pages_show_one_moment_though_things_change(self, server: ApiServer, api: Api) -> None:
        for i in range(9):
            server.create(service(f"s{i}"))
        page = await api.get(f"{SERVICES}?limit=4")
        await api.delete(f"{SERVICES}/s5")
        await api.post(SERVICES, service("s55"))
        names = page.names
        while token := page.body["metadata"].get("continue"):
            page = await api.get(f"{SERVICES}?limit=4&continue={token}")
            names += page.names
        assert names == ["kubernetes", *(f"s{i}" for i in range(9))]

    async def test_a_token_from_before_a_compaction_is_gone(self, server: ApiServer, api: Api) -> None:
        for i in range(3):
            server.create(service(f"s{i}"))
        token = (await api.get(f"{SERVICES}?limit=1")).body["metadata"]["continue"]
        server.create(service("later"))
        server.store.compact()
        answer = await api.get(f"{SERVICES}?limit=1&continue={token}")
        assert (answer.status, answer.body["reason"]) == (410, "Expired")

    async def test_a_made_up_token_is_refused(self, api: Api) -> None:
        assert (await api.get(f"{SERVICES}?limit=1&continue=nonsense")).status == 400

    async def test_an_exact_version_shows_the_past(self, server: ApiServer, api: Api) -> None:
        made = await api.post(SERVICES, service("a"))
        await api.delete(f"{SERVICES}/a")
        then = await api.get(f"{SERVICES}?resourceVersion={made.rv}&resourceVersionMatch=Exact")
        assert then.names == ["a", "kubernetes"]
        assert then.rv == made.rv

    @pytest.mark.parametrize(
        ("selector", "expected"),
        [
            ("tier", ["a", "b"]),
            ("!tier", ["c", "kubernetes"]),
            ("tier notin (web)", ["b", "c", "kubernetes"]),
            ("tier=web,app!=x", ["a"]),
            ("size>2", ["b"]),
            ("tier in (web,db),size<3", ["a"]),
        ],
    )
    async def test_label_selectors(self, server: ApiServer, api: Api, selector: str, expected: list[str]) -> None:
        for name, labels in (("a", {"tier": "web", "size": "1"}), ("b", {"tier": "db", "size": "3"}), ("c", {})):
            server.create({**service(name), "metadata": {"name": name, "labels": labels}})
        listed = await api.get(f"{SERVICES}?labelSelector={selector.replace('>', '%3E').replace('<', '%3C')}")
        assert listed.names == expected

    async def test_delete_collection_deletes_what_is_selected(self, server: ApiServer, api: Api) -> None:
        for name in ("a", "b"):
            server.create({**service(name), "metadata": {"name": name, "labels": {"n": name}}})
        await api.delete(f"{SERVICES}?labelSelector=n=a")
        assert (await api.get(SERVICES)).names == ["b", "kubernetes"]


class TestWrites:
    async def test_of_two_writers_at_one_version_one_is_refused(self, api: Api) -> None:
        made = await api.post(SERVICES, service("a"))
        patches = [{"metadata": {"resourceVersion": made.rv, "labels": {"n": str(n)}}} for n in range(2)]
        answers = await asyncio.gather(*(api.merge(f"{SERVICES}/a/status", p) for p in patches))
        assert sorted(a.status for a in answers) == [200, 409]

    async def test_a_patch_for_a_namesake_is_refused(self, api: Api) -> None:
        old = await api.post(SERVICES, service("a"))
        await api.delete(f"{SERVICES}/a")
        await api.post(SERVICES, service("a"))
        answer = await api.merge(f"{SERVICES}/a/status", {"metadata": {"uid": old.body["metadata"]["uid"]}})
        assert (answer.status, answer.body["details"]["causes"][0]["field"]) == (422, "metadata.uid")

    async def test_a_dry_run_changes_nothing_and_takes_no_numbers(self, api: Api) -> None:
        dry = await api.post(f"{SERVICES}?dryRun=All", service("a"))
        assert dry.status == 201
        assert (await api.get(f"{SERVICES}/a")).status == 404
        real = await api.post(
            SERVICES, {**service("b"), "spec": {**service("b")["spec"], "clusterIP": dry.body["spec"]["clusterIP"]}}
        )
        assert real.status == 201

    async def test_no_number_is_handed_out_twice_and_freed_ones_come_back(self, api: Api) -> None:
        answers = await asyncio.gather(*(api.post(SERVICES, service(f"s{i}")) for i in range(50)))
        ports = [a.body["spec"]["ports"][0]["nodePort"] for a in answers]
        addresses = [a.body["spec"]["clusterIP"] for a in answers]
        assert len(set(ports)) == len(set(addresses)) == 50
        taken = {**service("t"), "spec": {**service("t")["spec"], "clusterIP": addresses[7]}}
        assert (await api.post(SERVICES, taken)).body["details"]["causes"][0]["field"] == "spec.clusterIPs"
        await api.delete(f"{SERVICES}/s7")
        assert (await api.post(SERVICES, taken)).status == 201

    async def test_unknown_fields_are_warned_of_and_dropped(self, api: Api) -> None:
        answer = await api.post(SERVICES, service("a", nonsense=1))
        assert answer.warnings == ['299 - "unknown field \\"spec.nonsense\\""']
        assert "nonsense" not in answer.body["spec"]

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"[]",
            b"null",
            b"{",
            b'{"metadata": []}',
            b'{"metadata": {"name": 7}}',
            b'{"metadata": {"name": "a"}, "spec": []}',
            b'{"metadata": {"name": "a"}, "spec": {"ports": {}}}',
            b'{"metadata": {"name": "a"}, "spec": {"ports": [null]}}',
            b'{"metadata": {"name": "a"}, "spec": {"ports": [{"port": "80"}]}}',
            b'{"metadata": {"name": "a"}, "spec": {"ports": [{"port": true}]}}',
            b'{"metadata": {"name": "a", "labels": {"a": null, "b": 1}}, "spec": {"ports": [{"port": 1}]}}',
            b'{"metadata": {"name": "a", "creationTimestamp": "yesterday"}, "spec": {"ports": [{"port": 1}]}}',
            b'{"kind": "Node", "metadata": {"name": "a"}}',
            b'{"apiVersion": "v2", "metadata": {"name": "a"}}',
            b"\xff\xfe",
            b"[" * 100_000,
        ],
    )
    async def test_a_body_that_is_no_service_is_refused_by_name(self, api: Api, body: bytes) -> None:
        answer = await api.request("POST", SERVICES, body)
        assert answer.status in (400, 422), answer.body
        assert answer.body["kind"] == "Status"

    @pytest.mark.parametrize(
        "patch", [[], b"null", 7, {"metadata": None}, {"metadata": 3}, {"spec": None}, {"spec": 1}]
    )
    async def test_a_patch_that_makes_nonsense_is_refused_or_harmless(self, api: Api, patch: object) -> None:
        await api.post(SERVICES, service("a"))
        answer = await api.request("PATCH", f"{SERVICES}/a", patch, "application/merge-patch+json")
        assert answer.status in (200, 400, 422), answer.body
        kept = await api.get(f"{SERVICES}/a")
        assert kept.body["spec"]["ports"][0]["port"] == 80

    async def test_a_body_beyond_the_limit_is_refused(self, api: Api) -> None:
        huge = {**service("a"), "metadata": {"name": "a", "annotations": {"x": "y" * (4 << 20)}}}
        assert (await api.post(SERVICES, huge)).status == 413

    async def test_annotations_have_a_limit(self, api: Api) -> None:
        long = {**service("a"), "metadata": {"name": "a", "annotations": {"x": "y" * (1 << 20)}}}
        answer = await api.post(SERVICES, long)
        assert (answer.status, answer.body["details"]["causes"][0]["reason"]) == (422, "FieldValueTooLong")


class TestNamespaces:
    async def test_deleting_a_namespace_deletes_what_is_in_it(self, server: ApiServer, api: Api) -> None:
        await api.post("/api/v1/namespaces", {"metadata": {"name": "n"}})
        await api.post("/api/v1/namespaces/n/services", service("a"))
        await api.post("/api/v1/namespaces/n/configmaps", {"metadata": {"name": "c"}})
        answer = await api.delete("/api/v1/namespaces/n")
        assert answer.body["status"]["phase"] == "Terminating"
        assert (await api.get("/api/v1/namespaces/n")).status == 404
        assert (await api.get("/api/v1/namespaces/n/services")).names == []
        assert server.store.bucket("configmaps").count == 0

    async def test_a_finalizer_holds_the_namespace_until_it_is_gone(self, api: Api) -> None:
        await api.post("/api/v1/namespaces", {"metadata": {"name": "n"}})
        held = {**service("a"), "metadata": {"name": "a", "finalizers": ["example.org/wait"]}}
        await api.post("/api/v1/namespaces/n/services", held)
        await api.delete("/api/v1/namespaces/n")
        assert (await api.get("/api/v1/namespaces/n")).body["status"]["phase"] == "Terminating"
        assert (await api.post("/api/v1/namespaces/n/services", service("b"))).status == 403
        await api.merge("/api/v1/namespaces/n/services/a", {"metadata": {"finalizers": None}})
        assert (await api.get("/api/v1/namespaces/n")).status == 404

    async def test_the_first_namespaces_stay(self, api: Api) -> None:
        assert (await api.delete("/api/v1/namespaces/default")).status == 403


class TestRestart:
    async def test_objects_survive_kill_9_and_old_versions_do_not(self, tmp_path: Path) -> None:
        async with started("--data", tmp_path) as (process, api):
            for i in range(20):
                await api.post(SERVICES, service(f"s{i}"))
            await api.delete(f"{SERVICES}/s3")
            status = {"loadBalancer": {"ingress": [{"ip": "10.0.0.4"}]}}
            last = await api.merge(f"{SERVICES}/s4/status", {"status": status})
            process.send_signal(signal.SIGKILL)
            await process.wait()
        async with started("--data", tmp_path) as (process, api):
            listed = await api.get(SERVICES)
            assert len(listed.names) == 20
            assert "s3" not in listed.names
            assert (await api.get(f"{SERVICES}/s4")).body == last.body
            assert int(listed.rv) > int(last.rv)
            async with api.watch(f"{SERVICES}?resourceVersion={last.rv}") as watch:
                event = await watch.next()
            assert event is not None
            assert event["object"]["code"] == 410
            made = await api.post(SERVICES, service("new"))
            assert int(made.rv) > int(listed.rv)
            assert made.body["spec"]["clusterIP"] not in {i["spec"]["clusterIP"] for i in listed.body["items"]}
            process.terminate()
            assert await process.wait() == 0

    def test_a_torn_last_line_costs_only_the_write_that_was_never_answered(self, tmp_path: Path) -> None:
        server = ApiServer(tmp_path)
        server.create(service("a"))
        server.create(service("b"))
        server.close()
        log = tmp_path / "objects.log"
        log.write_bytes(log.read_bytes()[:-30])
        again = ApiServer(tmp_path)
        assert again.get("v1", "Service", "a", "default")
        assert again.get("v1", "Service", "b", "default") is None
        again.close()

    def test_custom_resources_and_deletions_under_way_are_taken_up(self, tmp_path: Path) -> None:
        server = ApiServer(tmp_path)
        server.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}})
        held = {**service("a"), "metadata": {"name": "a", "namespace": "n", "finalizers": ["example.org/wait"]}}
        server.create(held)
        server.delete("v1", "Namespace", "n")
        server.close()
        again = ApiServer(tmp_path)
        found = again.get("v1", "Namespace", "n")
        assert found is not None
        assert found["status"]["phase"] == "Terminating"
        again.close()

    def test_the_log_does_not_grow_without_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("purelb_sm.sandbox.apiserver.journal._SMALL", 50_000)
        server = ApiServer(tmp_path)
        server.create(service("a"))
        for i in range(500):
            server.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "labels": {"i": str(i)}}})
        assert (tmp_path / "objects.log").stat().st_size < 100_000
        server.close()
        again = ApiServer(tmp_path)
        kept = again.get("v1", "Service", "a", "default")
        assert kept is not None
        assert kept["metadata"]["labels"] == {"i": "499"}
        again.close()

    async def test_one_server_can_go_down_and_come_back_under_its_watchers(self) -> None:
        server = ApiServer()
        async with running(server) as api, api.watch(f"{SERVICES}?fieldSelector=metadata.name=a") as watch:
            server.end_watches()
            assert await watch.next() is None
        async with running(server) as api, api.watch(f"{SERVICES}?fieldSelector=metadata.name=a") as watch:
            await api.post(SERVICES, service("a"))
            assert await watch.take(1) == [("ADDED", "a")]

    async def test_seeding_is_there_for_clients(self) -> None:
        server = ApiServer()
        for i in range(1000):
            server.create(service(f"s{i}"))
        async with running(server) as api:
            assert len((await api.get(SERVICES)).names) == 1001


class TestFaults:
    async def test_429_says_when_to_come_again_and_counts_down(self, server: ApiServer, api: Api) -> None:
        server.faults.add(Fault("too_many", method="POST", times=2, delay_s=3))
        answers = [await api.post(SERVICES, service("a")) for _ in range(3)]
        assert [a.status for a in answers] == [429, 429, 201]
        assert answers[0].headers["Retry-After"] == "3"

    async def test_500_hits_only_what_it_names(self, server: ApiServer, api: Api) -> None:
        server.faults.add(Fault("error", path="/services/a/status"))
        await api.post(SERVICES, service("a"))
        assert (await api.merge(f"{SERVICES}/a/status", {"status": {}})).status == 500
        assert (await api.get(f"{SERVICES}/a")).status == 200

    async def test_a_reset_connection_is_seen_as_one(self, server: ApiServer, api: Api) -> None:
        server.faults.add(Fault("abort"))
        with pytest.raises(aiohttp.ClientConnectionError):
            await api.get(SERVICES)
        server.faults.clear()
        assert (await api.get(SERVICES)).status == 200

    async def test_truncated_json_is_not_json(self, server: ApiServer, api: Api) -> None:
        server.faults.add(Fault("truncate", times=1))
        with pytest.raises(aiohttp.ClientError):
            await api.get(SERVICES)

    async def test_a_hanging_request_never_ends_by_itself(self, server: ApiServer, api: Api) -> None:
        server.faults.add(Fault("hang", times=1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await api.get(SERVICES)

    async def test_a_delayed_write_happens(self, server: ApiServer, api: Api) -> None:
        server.faults.add(Fault("delay", method="POST", delay_s=0.2))
        assert (await api.post(SERVICES, service("a"))).status == 201

    @pytest.mark.parametrize("kind", ["abort", "truncate", "close"])
    async def test_a_watch_goes_wrong_after_so_many_events(self, server: ApiServer, api: Api, kind: str) -> None:
        server.faults.add(Fault(kind, watch=True, after=2))
        for name in ("a", "b"):
            server.create(service(name))
        async with api.watch(SERVICES) as watch:
            assert await watch.take(2) == [("ADDED", "a"), ("ADDED", "b")]
            with contextlib.suppress(aiohttp.ClientError, ValueError):
                assert await watch.next() is None

    async def test_a_hung_watch_gives_no_byte(self, server: ApiServer, api: Api) -> None:
        server.faults.add(Fault("hang", watch=True))
        async with api.watch(SERVICES) as watch:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await watch.next()

    async def test_faults_can_be_injected_into_another_process(self) -> None:
        async with started() as (_, api):
            added = await api.post("/sandbox/faults", {"kind": "error", "path": "/services", "times": 1})
            assert added.body["number"] > 0
            assert (await api.get(SERVICES)).status == 500
            assert (await api.get("/sandbox/faults")).body[0]["hits"] == 1
            await api.post("/sandbox/faults", {"kind": "error"})
            await api.delete("/sandbox/faults")
            assert (await api.get(SERVICES)).status == 200
            assert (await api.post("/sandbox/faults", {"kind": "odd"})).status == 400
            assert (await api.post("/sandbox/faults", {"kind": "error", "when": "now"})).status == 400


class TestAccess:
    async def test_without_the_right_token_there_is_nothing_but_health(self) -> None:
        server = ApiServer(tokens={"good": "agent"})
        async with running(server) as api:
            assert (await api.get(SERVICES)).status == 401
            assert (await api.get("/readyz")).body == "ok"
        async with running(server, "good") as api:
            assert (await api.get(SERVICES)).status == 200
            review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "good"}}
            answer = await api.post("/apis/authentication.k8s.io/v1/tokenreviews", review)
            assert answer.body["status"]["user"]["username"] == "agent"

    async def test_it_serves_on_sockets_that_were_opened_before(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            async with serve(ApiServer(), sockets=[one, other]) as url, aiohttp.ClientSession() as session:
                assert url.endswith(f":{one.getsockname()[1]}")
                for each in (one, other):
                    api = Api(session, f"http://127.0.0.1:{each.getsockname()[1]}")
                    assert (await api.get("/livez")).body == "ok"

    async def test_a_process_takes_over_sockets_and_writes_a_kubeconfig(self, tmp_path: Path) -> None:
        where = tmp_path / "config"
        with socket.create_server(("127.0.0.1", 0)) as opened:
            number = opened.fileno()
            arguments = ("--fd", str(number), "--kubeconfig-out", where)
            async with started(*arguments, descriptors=[number]) as (_, api):
                assert (await api.get("/readyz")).body == "ok"
                assert api.url.endswith(f":{opened.getsockname()[1]}")
                assert api.url in where.read_text()

    def test_a_kubeconfig_is_readable_by_its_owner_only(self, tmp_path: Path) -> None:
        write_kubeconfig(tmp_path / "k" / "config", "http://127.0.0.1:1", "secret")
        assert (tmp_path / "k" / "config").stat().st_mode & 0o77 == 0
