"""What the server says of itself: groups, versions, resources, in the older lists and the aggregated document."""

from __future__ import annotations

from purelb_sm.sandbox.apiserver.objects import JSON, group_version
from purelb_sm.sandbox.apiserver.registry import Registry, Resource, Subresource

# The recorded server's own words; clients only look at major and minor.
VERSION: JSON = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    "gitVersion": "v1.36.2",
    "gitCommit": "8e16b12fda5b1dccc41a6de48b3e356cc7d5048b",
    "gitTreeState": "",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "go1.26.6",
    "compiler": "gc",
    "platform": "linux/amd64",
}
AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


def api_versions(address: str) -> JSON:
    """GET /api."""
    where = [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": where}


def group(registry: Registry, name: str) -> JSON | None:
    """GET /apis/GROUP, or None when there is no such group."""
    versions = [{"groupVersion": group_version(name, v), "version": v} for v in registry.versions(name)]
    if not name or not versions:
        return None
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def group_list(registry: Registry) -> JSON:
    """GET /apis."""
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group(registry, g) for g in registry.groups()]}


def resource_list(registry: Registry, name: str, version: str) -> JSON | None:
    """GET /api/v1 or /apis/GROUP/VERSION, or None when it is not served."""
    if version not in registry.versions(name):
        return None
    resources = [row for resource in registry.of(name, version) for row in _rows(resource)]
    head: JSON = {"kind": "APIResourceList"}
    if name:
        # The core group is the one whose list does not say its own version.
        head["apiVersion"] = "v1"
    return {**head, "groupVersion": group_version(name, version), "resources": resources}


def _rows(resource: Resource) -> list[JSON]:
    row: JSON = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        row["shortNames"] = list(resource.short_names)
    if resource.categories:
        row["categories"] = list(resource.categories)
    if "create" in resource.verbs and resource.stored:
        row["storageVersionHash"] = resource.storage_hash
    return [row, *(_part_row(resource, part) for part in sorted(resource.subresources, key=lambda s: s.name))]


def _part_row(resource: Resource, part: Subresource) -> JSON:
    row: JSON = {
        "name": f"{resource.plural}/{part.name}",
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": part.kind,
        "verbs": list(part.verbs),
    }
    if part.version:
        row.update(group=part.group, version=part.version)
    return row


def aggregated(registry: Registry, *, core: bool) -> JSON:
    """GET /api or /apis as one document with all resources."""
    names = [""] if core else registry.groups()
    items = [_group_item(registry, name) for name in names]
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    }


def _group_item(registry: Registry, name: str) -> JSON:
    versions = [
        {
            "version": version,
            "resources": [_item(r) for r in registry.of(name, version)],
            "freshness": "Current",
        }
        for version in registry.versions(name)
    ]
    return {"metadata": {"name": name} if name else {}, "versions": versions}


def _item(resource: Resource) -> JSON:
    item: JSON = {
        "resource": resource.plural,
        "responseKind": _kind(resource, "", "", resource.kind),
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        item["shortNames"] = list(resource.short_names)
    if resource.categories:
        item["categories"] = list(resource.categories)
    if resource.subresources:
        item["subresources"] = [
            {
                "subresource": part.name,
                "responseKind": _kind(resource, part.group, part.version, part.kind),
                "verbs": list(part.verbs),
            }
            for part in sorted(resource.subresources, key=lambda s: s.name)
        ]
    return item


def _kind(resource: Resource, group: str, version: str, kind: str) -> JSON:
    if resource.custom:
        group, version = resource.group, resource.version
    # Built-in kinds leave out what equals the place where they stand.
    return {"group": group, "version": version, "kind": kind}
