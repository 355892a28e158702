"""Where each kind lives on the API server. The one place that spells groups, versions and plurals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from purelb_sm.domain.names import API_GROUP


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind at one version, as the API server serves it. `group` is empty for the core group."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def collection(self, namespace: str | None = None) -> str:
        """The path to list, watch and create. No namespace: across all of them (list and watch only)."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        inside = f"/namespaces/{_segment(namespace)}" if self.namespaced and namespace else ""
        return f"{root}{inside}/{self.plural}"

    def path(self, name: str, namespace: str | None = None, subresource: str = "") -> str:
        """The path of one object. Raises ValueError if a namespaced kind is asked for without its namespace."""
        if self.namespaced and not namespace:
            raise ValueError(f"{self.kind} {name!r} needs a namespace")
        tail = f"/{subresource}" if subresource else ""
        return f"{self.collection(namespace)}/{_segment(name)}{tail}"


def _segment(name: str) -> str:
    """A name as one path segment: even a hostile one can reach no other path."""
    if name in {"", ".", ".."}:
        raise ValueError(f"{name!r} cannot name an object")
    return quote(name, safe="")


SERVICES: Final = Resource("", "v1", "Service", "services")
NODES: Final = Resource("", "v1", "Node", "nodes", namespaced=False)
NAMESPACES: Final = Resource("", "v1", "Namespace", "namespaces", namespaced=False)
EVENTS: Final = Resource("", "v1", "Event", "events")
LEASES: Final = Resource("coordination.k8s.io", "v1", "Lease", "leases")
ENDPOINT_SLICES: Final = Resource("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
SERVICE_GROUPS: Final = Resource(API_GROUP, "v2", "ServiceGroup", "servicegroups")
LB_NODE_AGENTS: Final = Resource(API_GROUP, "v2", "LBNodeAgent", "lbnodeagents")
NODE_ANNOUNCEMENTS: Final = Resource(API_GROUP, "v2", "NodeAnnouncement", "nodeannouncements")
