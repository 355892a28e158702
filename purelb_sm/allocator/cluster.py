"""The allocator's hands in the cluster: status of Services and groups, and Events."""

from __future__ import annotations

from contextlib import suppress

from purelb_sm.allocator.groups import GroupNotice
from purelb_sm.domain.book import EventNote, PolicyReset, Publication
from purelb_sm.domain.views import ObjectView, ServiceKey, ServiceView
from purelb_sm.kube.client import MERGE_PATCH, KubeClient
from purelb_sm.kube.events import EventRecorder
from purelb_sm.kube.objects import SERVICE_GROUP, ObjectKey, Undecodable
from purelb_sm.kube.publish import publish, set_traffic_policy
from purelb_sm.kube.reflector import Reflector
from purelb_sm.kube.resources import SERVICE_GROUPS


class KubeCluster:
    """Implements `publisher.Cluster` on a real API server."""

    def __init__(
        self,
        client: KubeClient,
        recorder: EventRecorder,
        services: Reflector[ServiceKey, ServiceView],
        groups: Reflector[ObjectKey, ObjectView],
        install_namespace: str,
    ) -> None:
        self._client = client
        self._recorder = recorder
        self._services = services
        self._groups = groups
        self._namespace = install_namespace

    async def publish(self, publication: Publication) -> ServiceView:
        return await publish(self._client, publication)

    async def reset_policy(self, reset: PolicyReset) -> ServiceView:
        return await set_traffic_policy(self._client, reset.key, reset.uid, reset.resource_version, "Cluster")

    def absorb(self, view: ServiceView) -> None:
        self._services.absorb(view)

    def record(self, key: ServiceKey, uid: str, resource_version: str, note: EventNote) -> None:
        self._recorder.service(key, uid, resource_version, note)

    def group(self, name: str) -> ObjectView | None:
        return self._groups.get((self._namespace, name))

    def tell_object(self, view: ObjectView, note: EventNote) -> None:
        self._recorder.object(view, note)

    async def tell_group(self, notice: GroupNotice) -> None:
        """Writes the group's status, conditional on the version looked at, then its Events. Raises KubeError."""
        view = notice.view
        body = {
            "metadata": {"uid": view.uid, "resourceVersion": view.resource_version},
            "status": notice.status,
        }
        path = SERVICE_GROUPS.path(view.name, view.namespace, "status")
        data = await self._client.request("PATCH", path, body=body, content_type=MERGE_PATCH)
        # So that our own write does not come back as news, for which all groups would be read again.
        with suppress(Undecodable):
            self._groups.absorb(SERVICE_GROUP.decode(data))
        for note in notice.events:
            self._recorder.object(view, note)
