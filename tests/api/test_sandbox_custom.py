"""Custom resources in the emulated API server: schemas, defaults, rules, versions, as a CRD of ours may use them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from purelb_sm.sandbox.apiserver import ApiServer
from tests.api.sandbox_client import JSON, Answer, Api, running

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WIDGETS = "/apis/test.example/v1/namespaces/default/widgets"


def definition(spec: JSON, **version: Any) -> JSON:
    """A CRD whose objects have this schema as their `spec`."""
    schema = {
        "type": "object",
        "properties": {
            "spec": spec,
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    }
    one = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
        **version,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.test.example"},
        "spec": {
            "group": "test.example",
            "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
            "versions": [one],
        },
    }


def widget(name: str = "w", version: str = "v1", **spec: Any) -> JSON:
    return {"apiVersion": f"test.example/{version}", "kind": "Widget", "metadata": {"name": name}, "spec": spec}


def fields(**properties: JSON) -> JSON:
    return {"type": "object", "properties": properties}


def causes(answer: Answer) -> list[tuple[str, str]]:
    assert answer.status == 422, answer.body
    return [(c["field"], c["reason"]) for c in answer.body["details"]["causes"]]


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with running(ApiServer()) as client:
        yield client


class TestValues:
    @pytest.mark.parametrize(
        ("schema", "good", "bad", "field", "reason"),
        [
            ({"type": "integer", "minimum": 2}, 2, 1, "spec.v", "FieldValueInvalid"),
            (
                {"type": "integer", "minimum": 2, "exclusiveMinimum": True},
                3,
                2,
                "spec.v",
                "FieldValueInvalid",
            ),
            ({"type": "string", "pattern": "^a+$"}, "aa", "b", "spec.v", "FieldValueInvalid"),
            ({"type": "string", "maxLength": 2}, "aa", "aaa", "spec.v", "FieldValueTooLong"),
            ({"type": "string", "format": "ipv4"}, "10.0.0.1", "10.0.0.256", "spec.v", "FieldValueInvalid"),
            ({"type": "string", "format": "cidr"}, "10.0.0.0/8", "10.0.0.0", "spec.v", "FieldValueInvalid"),
            ({"type": "string"}, "a", 1, "spec.v", "FieldValueTypeInvalid"),
            ({"type": "integer"}, 1, 1.5, "spec.v", "FieldValueTypeInvalid"),
            ({"type": "boolean"}, True, "true", "spec.v", "FieldValueTypeInvalid"),
            ({"type": "string", "enum": ["a"]}, "a", "b", "spec.v", "FieldValueNotSupported"),
            (
                {"type": "array", "items": {"type": "string"}, "maxItems": 1},
                ["a"],
                ["a", "b"],
                "spec.v",
                "FieldValueTooMany",
            ),
            ({"type": "array", "items": {"type": "integer"}}, [1], [1, "x"], "spec.v[1]", "FieldValueTypeInvalid"),
            ({"x-kubernetes-int-or-string": True}, "5", True, "spec.v", "FieldValueTypeInvalid"),
            (
                {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                ["a", "b"],
                ["a", "a"],
                "spec.v[1]",
                "FieldValueDuplicate",
            ),
            (
                {"type": "object", "additionalProperties": {"type": "string"}},
                {"a": "b"},
                {"a": 1},
                "spec.v.a",
                "FieldValueTypeInvalid",
            ),
            ({"type": "string", "nullable": True}, None, 1, "spec.v", "FieldValueTypeInvalid"),
        ],
    )
    async def test_a_value_outside_its_schema_is_refused_by_field(
        self, api: Api, schema: JSON, good: object, bad: object, field: str, reason: str
    ) -> None:
        assert (await api.post(CRDS, definition(fields(v=schema)))).status == 201
        assert (await api.post(WIDGETS, widget("good", v=good))).status == 201
        assert (field, reason) in causes(await api.post(WIDGETS, widget("bad", v=bad)))

    async def test_defaults_fill_in_at_every_depth_and_after_a_patch(self, api: Api) -> None:
        inner = fields(mode={"type": "string", "default": "auto"})
        spec = fields(items={"type": "array", "items": inner}, more={**inner, "default": {}})
        await api.post(CRDS, definition(spec))
        made = await api.post(WIDGETS, widget(items=[{}, {"mode": "x"}]))
        assert made.body["spec"] == {"items": [{"mode": "auto"}, {"mode": "x"}], "more": {"mode": "auto"}}
        patched = await api.merge(f"{WIDGETS}/w", {"spec": {"more": {"mode": None}}})
        assert patched.body["spec"]["more"] == {"mode": "auto"}

    async def test_unknown_fields_go_unless_they_are_to_be_kept(self, api: Api) -> None:
        kept = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        await api.post(CRDS, definition(fields(kept=kept, a=fields(b={"type": "string"}))))
        made = await api.post(WIDGETS, widget(kept={"x": {"y": 1}}, a={"b": "1", "c": "2"}, d=3))
        assert made.body["spec"] == {"kept": {"x": {"y": 1}}, "a": {"b": "1"}}
        assert made.warnings == ['299 - "unknown field \\"spec.a.c\\""', '299 - "unknown field \\"spec.d\\""']

    async def test_metadata_through_the_status_is_not_written(self, api: Api) -> None:
        await api.post(CRDS, definition(fields()))
        await api.post(WIDGETS, widget())
        answer = await api.merge(f"{WIDGETS}/w/status", {"metadata": {"labels": {"a": "b"}}, "status": {"x": 1}})
        assert answer.body["status"] == {"x": 1}
        assert "labels" not in answer.body["metadata"]

    async def test_a_put_must_say_which_version_it_replaces(self, api: Api) -> None:
        await api.post(CRDS, definition(fields()))
        made = await api.post(WIDGETS, widget())
        assert causes(await api.put(f"{WIDGETS}/w", widget())) == [("metadata.resourceVersion", "FieldValueInvalid")]
        assert (await api.put(f"{WIDGETS}/w", made.body)).status == 200


class TestRules:
    @pytest.mark.parametrize(
        ("rule", "good", "bad"),
        [
            ("has(self.a) != has(self.b)", {"a": "1"}, {"a": "1", "b": "1"}),
            ("[has(self.a), has(self.b)].filter(x, x).size() == 1", {"b": "1"}, {}),
            ("!has(self.list) || self.list.all(x, isCIDR(x))", {"list": ["10.0.0.0/8"]}, {"list": ["10.0.0.0"]}),
            ("!has(self.a) || isIP(self.a)", {"a": "fd00::1"}, {"a": "fd00::1%eth0"}),
            ("!has(self.a) || cidr(self.a).containsIP('10.0.0.1')", {"a": "10.0.0.0/8"}, {"a": "11.0.0.0/8"}),
            ("!has(self.a) || ip(self.a).family() == 4", {"a": "10.0.0.1"}, {"a": "::1"}),
            ("!has(self.a) || self.a.split('-').size() == 2", {"a": "x-y"}, {"a": "x"}),
            ("!has(self.n) || self.n < 1.5", {"n": 1}, {"n": 2}),
            ("!has(self.__namespace__) || self.__namespace__ == 'x'", {"namespace": "x"}, {"namespace": "y"}),
            ("!has(self.a) || self.a.matches('^[0-9]+[smh]$')", {"a": "10m"}, {"a": "10"}),
        ],
    )
    async def test_a_rule_lets_the_good_through_and_refuses_the_bad(
        self, api: Api, rule: str, good: JSON, bad: JSON
    ) -> None:
        text = {"type": "string"}
        spec = fields(a=text, b=text, n={"type": "number"}, list={"type": "array", "items": text}, namespace=text)
        spec["x-kubernetes-validations"] = [{"rule": rule, "message": "not so"}]
        await api.post(CRDS, definition(spec))
        assert (await api.post(WIDGETS, widget("good", **good))).status == 201
        answer = await api.post(WIDGETS, widget("bad", **bad))
        assert causes(answer) == [("spec", "FieldValueInvalid")]
        assert answer.body["details"]["causes"][0]["message"].endswith("not so")

    async def test_a_transition_rule_holds_for_updates_only(self, api: Api) -> None:
        spec = fields(a={"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]})
        await api.post(CRDS, definition(spec))
        assert (await api.post(WIDGETS, widget(a="1"))).status == 201
        assert causes(await api.merge(f"{WIDGETS}/w", {"spec": {"a": "2"}})) == [("spec.a", "FieldValueInvalid")]
        assert (await api.merge(f"{WIDGETS}/w", {"metadata": {"labels": {"x": "y"}}})).status == 200

    async def test_field_path_reason_and_message_expression_are_told(self, api: Api) -> None:
        rule = {
            "rule": "!has(self.a) || self.a != 'x'",
            "messageExpression": "'a is ' + self.a",
            "fieldPath": ".a",
            "reason": "FieldValueForbidden",
        }
        await api.post(CRDS, definition({**fields(a={"type": "string"}), "x-kubernetes-validations": [rule]}))
        answer = await api.post(WIDGETS, widget(a="x"))
        assert causes(answer) == [("spec.a", "FieldValueForbidden")]
        assert answer.body["details"]["causes"][0]["message"].endswith("a is x")

    @pytest.mark.parametrize("rule", ["self.a.someDay(1)", "self.?a.orValue('') == ''"])
    async def test_a_rule_that_cannot_be_run_is_never_taken_as_passed_in_silence(self, api: Api, rule: str) -> None:
        spec = {**fields(a={"type": "string"}), "x-kubernetes-validations": [{"rule": rule}]}
        assert (await api.post(CRDS, definition(spec))).status == 201
        answer = await api.post(WIDGETS, widget(a="1"))
        assert answer.status == 201
        assert any("was not evaluated" in warning for warning in answer.warnings)

    async def test_rules_wait_until_the_rest_is_right(self, api: Api) -> None:
        spec = fields(a={"type": "string"})
        spec.update({"required": ["a"], "x-kubernetes-validations": [{"rule": "self.a == 'x'"}]})
        await api.post(CRDS, definition(spec))
        assert causes(await api.post(WIDGETS, widget())) == [
            ("spec.a", "FieldValueRequired"),
            ("<nil>", "FieldValueInvalid"),
        ]


class TestVersions:
    @pytest.fixture
    async def two(self, api: Api) -> Api:
        """v1 calls a thing `old` and v2 calls it `new`; v2 is stored."""
        crd = definition(fields(both={"type": "string"}, new={"type": "string", "default": "n"}), name="v2")
        first = definition(fields(both={"type": "string"}, old={"type": "string"}))["spec"]["versions"][0]
        crd["spec"]["versions"].append({**first, "storage": False, "deprecated": True})
        assert (await api.post(CRDS, crd)).status == 201
        return api

    async def test_every_version_shows_what_it_knows(self, two: Api) -> None:
        await two.post(WIDGETS.replace("v1", "v2"), widget(version="v2", both="b"))
        second = await two.get(f"{WIDGETS.replace('v1', 'v2')}/w")
        assert (second.body["apiVersion"], second.body["spec"]) == ("test.example/v2", {"both": "b", "new": "n"})
        first = await two.get(f"{WIDGETS}/w")
        assert (first.body["apiVersion"], first.body["spec"]) == ("test.example/v1", {"both": "b"})
        assert first.warnings == ['299 - "test.example/v1 Widget is deprecated"']

    async def test_a_write_in_one_version_is_an_event_in_the_other(self, two: Api) -> None:
        async with two.watch(WIDGETS.replace("v1", "v2")) as watch:
            await two.post(WIDGETS, widget(both="b"))
            event = await watch.next()
        assert event is not None
        assert event["object"]["apiVersion"] == "test.example/v2"
        assert event["object"]["spec"] == {"both": "b", "new": "n"}

    async def test_a_list_is_of_the_version_that_was_asked_for(self, two: Api) -> None:
        await two.post(WIDGETS, widget(both="b"))
        for version in ("v1", "v2"):
            listed = await two.get(WIDGETS.replace("v1", version))
            assert [i["apiVersion"] for i in listed.body["items"]] == [f"test.example/{version}"]

    async def test_a_no_op_through_the_other_version_writes_nothing(self, two: Api) -> None:
        made = await two.post(WIDGETS, widget(both="b"))
        answer = await two.merge(f"{WIDGETS.replace('v1', 'v2')}/w", {"spec": {"both": "b"}})
        assert answer.rv == made.rv

    async def test_a_version_that_is_not_served_is_not_found(self, two: Api) -> None:
        crd = (await two.get(f"{CRDS}/widgets.test.example")).body
        crd["spec"]["versions"][1]["served"] = False
        assert (await two.put(f"{CRDS}/widgets.test.example", crd)).status == 200
        assert (await two.get(WIDGETS)).status == 404
        assert (await two.get(WIDGETS.replace("v1", "v2"))).status == 200

    async def test_a_stored_version_may_not_go(self, two: Api) -> None:
        crd = (await two.get(f"{CRDS}/widgets.test.example")).body
        crd["spec"]["versions"] = [{**crd["spec"]["versions"][1], "storage": True}]
        answer = await two.put(f"{CRDS}/widgets.test.example", crd)
        assert causes(answer) == [("status.storedVersions[0]", "FieldValueInvalid")]

    async def test_a_new_default_shows_on_what_was_stored_before(self, api: Api) -> None:
        await api.post(CRDS, definition(fields(a={"type": "string"})))
        await api.post(WIDGETS, widget(a="1"))
        added = definition(fields(a={"type": "string"}, b={"type": "string", "default": "new"}))
        assert (await api.merge(f"{CRDS}/widgets.test.example", {"spec": added["spec"]})).status == 200
        assert (await api.get(f"{WIDGETS}/w")).body["spec"] == {"a": "1", "b": "new"}


class TestDefinitions:
    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"metadata": {"name": "other.test.example"}}, "metadata.name"),
            ({"spec": {"scope": "Galaxy"}}, "spec.scope"),
            ({"spec": {"versions": []}}, "spec.versions"),
            (
                {"spec": {"versions": [{"name": "v1", "served": True, "storage": True}]}},
                "spec.versions[0].schema.openAPIV3Schema",
            ),
            ({"spec": {"conversion": {"strategy": "Webhook"}}}, "spec.conversion.strategy"),
        ],
    )
    async def test_a_bad_definition_is_refused_by_field(self, api: Api, change: JSON, field: str) -> None:
        crd = definition(fields())
        for key, value in change.items():
            crd[key] = {**crd[key], **value}
        assert field in [name for name, _ in causes(await api.post(CRDS, crd))]

    async def test_a_property_without_a_type_is_not_structural(self, api: Api) -> None:
        answer = await api.post(CRDS, definition(fields(a={"description": "nothing"})))
        path = "spec.versions[0].schema.openAPIV3Schema.properties[spec].properties[a].type"
        assert causes(answer) == [(path, "FieldValueRequired")]

    async def test_a_finalizer_of_an_object_holds_its_definition(self, api: Api) -> None:
        await api.post(CRDS, definition(fields()))
        await api.post(WIDGETS, {**widget(), "metadata": {"name": "w", "finalizers": ["example.org/wait"]}})
        await api.delete(f"{CRDS}/widgets.test.example")
        assert (await api.get(f"{WIDGETS}/w")).body["metadata"]["deletionTimestamp"]
        await api.merge(f"{WIDGETS}/w", {"metadata": {"finalizers": []}})
        assert (await api.get(f"{CRDS}/widgets.test.example")).status == 404
        assert (await api.get(WIDGETS)).status == 404

    async def test_definitions_and_objects_outlive_the_process(self, tmp_path: Path) -> None:
        server = ApiServer(tmp_path)
        server.create(definition(fields(a={"type": "string", "default": "x"})))
        server.create(widget())
        server.close()
        async with running(ApiServer(tmp_path)) as again:
            assert (await again.get(f"{WIDGETS}/w")).body["spec"] == {"a": "x"}
            assert (await again.post(WIDGETS, widget("new"))).status == 201
