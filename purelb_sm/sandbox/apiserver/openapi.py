"""OpenAPI documents: as much as `kubectl` reads before it writes, and `kubectl explain` shows.

kubectl looks for the `fieldValidation` parameter of a kind's PATCH, to leave checking to the server; it also reads the
schemas. The documents are made from the same `Schema` nodes that check the objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.registry import Registry, Resource
from purelb_sm.sandbox.apiserver.schema import Schema
from purelb_sm.sandbox.apiserver.storage import encode

_QUERY = [
    {"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": True}}
    for name in ("dryRun", "fieldManager", "fieldValidation", "pretty")
]
_PATCHES = (
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
)
_FORMATS = {
    "time": "date-time",
    "microtime": "date-time",
    "intstr": "int-or-string",
    "bytes": "byte",
    "quantity": "quantity",
    "duration": "duration",
}
# Deeper nodes are shown as plain objects: schemas of Pods are large, and nobody explains them in a sandbox.
_DEPTH = 12


def _path(group: str, version: str) -> str:
    return f"apis/{group}/{version}" if group else f"api/{version}"


def index(registry: Registry) -> JSON:
    """GET /openapi/v3: where the document of each group version is; the hash lets clients cache it."""
    paths = {}
    for group, version in _group_versions(registry):
        path = _path(group, version)
        digest = hashlib.sha256(f"{path} {_fingerprint(registry, group, version)}".encode()).hexdigest()[:32].upper()
        paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"}
    return {"paths": paths}


def _group_versions(registry: Registry) -> Iterator[tuple[str, str]]:
    yield "", "v1"
    for group in registry.groups():
        for version in registry.versions(group):
            yield group, version


def _fingerprint(registry: Registry, group: str, version: str) -> str:
    document = document_of(registry, group, version)
    return hashlib.sha256(encode(document)).hexdigest()


def document_of(registry: Registry, group: str, version: str) -> JSON | None:
    """GET /openapi/v3/…, or None when the group version is not served."""
    if version not in registry.versions(group):
        return None
    resources = list(registry.of(group, version))
    schemas: JSON = {}
    paths: JSON = {}
    for resource in resources:
        schemas[_name(resource)] = _kind_schema(resource)
        if resource.stored:
            paths.update(_paths(resource))
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.36.2"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _name(resource: Resource) -> str:
    if resource.custom:
        reverse = ".".join(reversed(resource.group.split(".")))
        return f"{reverse}.{resource.version}.{resource.kind}"
    package = (resource.group or "core").split(".")[0]
    return f"io.k8s.api.{package}.{resource.version}.{resource.kind}"


def _paths(resource: Resource) -> JSON:
    base = f"/{_path(resource.group, resource.version)}"
    if resource.namespaced:
        base += "/namespaces/{namespace}"
    kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    reference = {"$ref": f"#/components/schemas/{_name(resource)}"}
    answer = {"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}}

    def operation(action: str, types: tuple[str, ...] = ()) -> JSON:
        made: JSON = {"x-kubernetes-action": action, "x-kubernetes-group-version-kind": kind, "responses": answer}
        if types:
            made["parameters"] = _QUERY
            made["requestBody"] = {"content": {each: {"schema": reference} for each in types}}
        return made

    body = ("application/json",)
    item = {
        "get": operation("get"),
        "put": operation("put", body),
        "patch": operation("patch", _PATCHES),
        "delete": operation("delete"),
    }
    collection = {"get": operation("list"), "post": operation("post", body)}
    return {f"{base}/{resource.plural}": collection, f"{base}/{resource.plural}/{{name}}": item}


def _kind_schema(resource: Resource) -> JSON:
    made = _shown(resource.schema, 0)
    properties = made.setdefault("properties", {})
    made["type"] = "object"
    properties["apiVersion"] = properties["kind"] = {"type": "string"}
    kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    made["x-kubernetes-group-version-kind"] = [kind]
    return made


def _shown(schema: Schema, depth: int) -> JSON:
    made: JSON = {}
    if schema.type in _FORMATS:
        return {"type": "string", "format": _FORMATS[schema.type]}
    if schema.type != "any":
        made["type"] = schema.type
    for key in ("description", "default", "enum"):
        if key in schema.checks:
            made[key] = schema.checks[key]
    if depth >= _DEPTH:
        return made
    if schema.fields:
        made["properties"] = {key: _shown(sub, depth + 1) for key, sub in schema.fields.items()}
    if schema.required:
        made["required"] = list(schema.required)
    if schema.values is not None:
        made["additionalProperties"] = _shown(schema.values, depth + 1)
    if schema.items is not None:
        made["items"] = _shown(schema.items, depth + 1)
        made["x-kubernetes-list-type"] = schema.list_type
        if schema.map_keys:
            made["x-kubernetes-list-map-keys"] = list(schema.map_keys)
        if schema.merge_key:
            made["x-kubernetes-patch-merge-key"] = schema.merge_key
        if schema.merge_key is not None:
            made["x-kubernetes-patch-strategy"] = "merge"
    if schema.open:
        made["x-kubernetes-preserve-unknown-fields"] = True
    return made
