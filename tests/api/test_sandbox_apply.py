"""Patches and ownership in the emulated API server: who set a field, who may change it, how lists merge."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purelb_sm.sandbox.apiserver import ApiServer, fieldsets, patching
from purelb_sm.sandbox.apiserver.builtin import builtin
from purelb_sm.sandbox.apiserver.patching import strategic_patch
from tests.api.sandbox_client import JSON, SERVICES, Api, running, service

ECHO = f"{SERVICES}/echo"


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with running(ApiServer()) as client:
        yield client


def config(**more: Any) -> JSON:
    """What a manager applies: as little as it wants to own."""
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "echo", **more.pop("metadata", {})}, **more}


def spec(*ports: JSON, **more: Any) -> JSON:
    return {"type": "LoadBalancer", "ports": list(ports), **more}


def owners(obj: JSON) -> dict[str, JSON]:
    return {
        f"{e['manager']}/{e['operation']}/{e.get('subresource', '')}": e["fieldsV1"]
        for e in obj["metadata"]["managedFields"]
    }


class TestOwnership:
    async def test_a_writer_owns_what_it_wrote_and_not_what_the_server_filled_in(self, api: Api) -> None:
        made = await api.request("POST", f"{SERVICES}?fieldManager=maker", service("echo"))
        fields = owners(made.body)["maker/Update/"]
        assert "f:type" in fields["f:spec"]
        assert "f:clusterIP" not in fields["f:spec"]
        assert "f:status" not in fields

    async def test_the_next_writer_takes_the_field_over(self, api: Api) -> None:
        await api.request(
            "POST",
            f"{SERVICES}?fieldManager=maker",
            {**service("echo"), "metadata": {"name": "echo", "labels": {"a": "1", "b": "1"}}},
        )
        answer = await api.merge(f"{ECHO}?fieldManager=other", {"metadata": {"labels": {"a": "2"}}})
        held = owners(answer.body)
        assert held["maker/Update/"]["f:metadata"]["f:labels"] == {".": {}, "f:b": {}}
        assert held["other/Update/"]["f:metadata"]["f:labels"] == {"f:a": {}}

    async def test_the_status_has_owners_of_its_own(self, api: Api) -> None:
        await api.post(SERVICES, service("echo"))
        status = {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}}
        answer = await api.merge(f"{ECHO}/status?fieldManager=lb", {"status": status})
        assert owners(answer.body)["lb/Update/status"] == {"f:status": {"f:loadBalancer": {"f:ingress": {}}}}

    async def test_forgetting_all_owners_can_be_asked_for(self, api: Api) -> None:
        await api.post(SERVICES, service("echo"))
        answer = await api.merge(f"{ECHO}?fieldManager=m", {"metadata": {"managedFields": [{}]}})
        assert "managedFields" not in answer.body["metadata"]


class TestApply:
    async def test_what_is_applied_no_longer_goes(self, api: Api) -> None:
        await api.apply(ECHO, config(metadata={"labels": {"a": "1", "b": "1"}}, spec=spec({"port": 80})))
        answer = await api.apply(ECHO, config(metadata={"labels": {"a": "1"}}, spec=spec({"port": 80})))
        assert answer.body["metadata"]["labels"] == {"a": "1"}

    async def test_what_another_owns_too_stays(self, api: Api) -> None:
        await api.apply(ECHO, config(metadata={"labels": {"a": "1"}}, spec=spec({"port": 80})), "one")
        await api.apply(ECHO, config(metadata={"labels": {"a": "1"}}), "two")
        answer = await api.apply(ECHO, config(spec=spec({"port": 80})), "one")
        assert answer.body["metadata"]["labels"] == {"a": "1"}

    async def test_two_managers_each_own_a_port(self, api: Api) -> None:
        await api.apply(ECHO, config(spec=spec({"port": 80, "name": "http"})), "one")
        answer = await api.apply(ECHO, config(spec={"ports": [{"port": 443, "name": "https"}]}), "two")
        assert [p["port"] for p in answer.body["spec"]["ports"]] == [80, 443]
        answer = await api.apply(ECHO, config(metadata={"labels": {"x": "y"}}), "two")
        assert [p["port"] for p in answer.body["spec"]["ports"]] == [80]

    async def test_every_conflict_is_named(self, api: Api) -> None:
        await api.apply(ECHO, config(spec=spec({"port": 80, "targetPort": 1}, sessionAffinity="None")), "one")
        other = config(spec={"ports": [{"port": 80, "targetPort": 2}], "sessionAffinity": "ClientIP"})
        answer = await api.apply(ECHO, other, "two")
        assert answer.status == 409
        assert [c["field"] for c in answer.body["details"]["causes"]] == [
            '.spec.ports[port=80,protocol="TCP"].targetPort',
            ".spec.sessionAffinity",
        ]

    async def test_force_takes_the_field_away(self, api: Api) -> None:
        await api.apply(ECHO, config(spec=spec({"port": 80, "targetPort": 1})), "one")
        answer = await api.apply(ECHO, config(spec={"ports": [{"port": 80, "targetPort": 2}]}), "two", force=True)
        port = 'k:{"port":80,"protocol":"TCP"}'
        assert "f:targetPort" not in owners(answer.body)["one/Apply/"]["f:spec"]["f:ports"][port]
        assert "f:targetPort" in owners(answer.body)["two/Apply/"]["f:spec"]["f:ports"][port]
        again = await api.apply(ECHO, config(spec=spec({"port": 80})), "one")
        assert again.body["spec"]["ports"][0]["targetPort"] == 2

    async def test_the_same_again_changes_nothing(self, api: Api) -> None:
        body = config(metadata={"annotations": {"a": "b"}}, spec=spec({"port": 80}))
        first = await api.apply(ECHO, body)
        assert (await api.apply(ECHO, body)).rv == first.rv

    async def test_status_is_applied_through_its_subresource_only(self, api: Api) -> None:
        ingress = {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}}
        first = await api.apply(ECHO, config(spec=spec({"port": 80}), status=ingress))
        assert first.body["status"] == {"loadBalancer": {}}
        answer = await api.apply(f"{ECHO}/status", config(status=ingress), "lb")
        assert answer.body["status"]["loadBalancer"]["ingress"] == [{"ip": "10.0.0.1", "ipMode": "VIP"}]
        assert answer.body["spec"] == first.body["spec"]

    async def test_yaml_is_read_and_a_date_stays_text(self, api: Api) -> None:
        text = b"kind: Service\nmetadata: {name: echo, annotations: {day: 2026-01-01}}\nspec: {ports: [{port: 80}]}\n"
        answer = await api.request("PATCH", f"{ECHO}?fieldManager=m", text, patching.APPLY_PATCH)
        assert answer.body["metadata"]["annotations"] == {"day": "2026-01-01"}

    @pytest.mark.parametrize("body", [b"{", b"- a", b"a: [", b"\xff", b"metadata: {managedFields: [{manager: x}]}"])
    async def test_what_cannot_be_applied_is_refused(self, api: Api, body: bytes) -> None:
        answer = await api.request("PATCH", f"{ECHO}?fieldManager=m", body, patching.APPLY_PATCH)
        assert answer.status == 400


PORTS = builtin("core/v1.ServiceSpec")


def ports(*numbers: int) -> JSON:
    return {"ports": [{"port": n, "name": str(n)} for n in numbers]}


def numbers(merged: JSON) -> list[int]:
    return [p["port"] for p in merged["ports"]]


class TestStrategicMerge:
    """The directives that kubectl sends."""

    def test_an_element_is_deleted_by_its_key(self) -> None:
        assert numbers(strategic_patch(ports(80, 443), {"ports": [{"$patch": "delete", "port": 80}]}, PORTS)) == [443]

    def test_a_list_is_replaced(self) -> None:
        patch = {"ports": [{"$patch": "replace"}, {"port": 1}]}
        assert numbers(strategic_patch(ports(80, 443), patch, PORTS)) == [1]

    def test_an_order_is_kept(self) -> None:
        patch = {"$setElementOrder/ports": [{"port": 443}, {"port": 80}], "ports": [{"port": 443, "nodePort": 31000}]}
        assert numbers(strategic_patch(ports(80, 443), patch, PORTS)) == [443, 80]

    def test_an_order_alone_moves_elements(self) -> None:
        patch = {"$setElementOrder/ports": [{"port": 443}, {"port": 80}]}
        assert numbers(strategic_patch(ports(80, 443), patch, PORTS)) == [443, 80]

    def test_only_named_keys_are_retained(self) -> None:
        patch = {"$retainKeys": ["type"], "type": "Recreate"}
        merged = strategic_patch(
            {"type": "RollingUpdate", "rollingUpdate": {}}, patch, builtin("apps/v1.DeploymentStrategy")
        )
        assert merged == {"type": "Recreate"}

    def test_scalars_are_taken_from_a_list(self) -> None:
        patch = {"$deleteFromPrimitiveList/finalizers": ["b"], "finalizers": ["c"]}
        merged = strategic_patch({"finalizers": ["a", "b"]}, patch, builtin("meta/v1.ObjectMeta"))
        assert sorted(merged["finalizers"]) == ["a", "c"]

    @given(st.permutations([1, 2, 3, 4]), st.lists(st.integers(1, 6), unique=True))
    def test_merging_keeps_all_keys_once(self, before: list[int], patch: list[int]) -> None:
        merged = strategic_patch(ports(*before), ports(*patch), PORTS)
        assert sorted(numbers(merged)) == sorted({*before, *patch})
        # The patch's own order holds among the elements that it names.
        assert [n for n in numbers(merged) if n in patch] == patch


_paths = st.lists(st.sampled_from(["f:a", "f:b", 'k:{"n":1}']), min_size=1, max_size=4).map(tuple)


class TestFieldSets:
    @given(st.sets(_paths))
    def test_a_set_has_what_was_put_in_and_nothing_else(self, paths: set[tuple[str, ...]]) -> None:
        fields: JSON = {}
        for path in sorted(paths):
            fieldsets.insert(fields, path)
        assert set(fieldsets.members(fields)) == paths
        assert all(fieldsets.contains(fields, path) for path in paths)

    @given(st.sets(_paths), _paths)
    def test_taking_out_leaves_the_rest(self, paths: set[tuple[str, ...]], gone: tuple[str, ...]) -> None:
        fields: JSON = {}
        for path in sorted(paths):
            fieldsets.insert(fields, path)
        fieldsets.discard(fields, gone)
        assert set(fieldsets.members(fields)) == {p for p in paths if p[: len(gone)] != gone}
