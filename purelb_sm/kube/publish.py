"""Writing what was decided onto Services: always one request, always conditional on the version it was decided by.

Guards: `metadata.resourceVersion` in the body refuses a write decided by an old state, `metadata.uid` one meant for
a Service that was deleted and made again under its name. Both come back as `Conflict`: read again, decide again.
"""

from __future__ import annotations

from collections.abc import Mapping

from purelb_sm.domain.book import Publication
from purelb_sm.domain.views import Condition, ServiceKey, ServiceView
from purelb_sm.errors import Conflict, Invalid, Unavailable
from purelb_sm.kube.client import MERGE_PATCH, KubeClient
from purelb_sm.kube.objects import Undecodable, decode_service
from purelb_sm.kube.resources import SERVICES


async def publish(client: KubeClient, publication: Publication) -> ServiceView:
    """Writes ingress, annotations and conditions in one merge PATCH on `/status`; the answer is the Service as it is.

    Raises Conflict (another version, or another Service of that name), NotFound, and the other KubeErrors.
    """
    key = publication.key
    path = SERVICES.path(key.name, key.namespace, "status")
    return await _patch(client, path, render(publication))


async def patch_annotations(
    client: KubeClient, key: ServiceKey, uid: str, resource_version: str, annotations: Mapping[str, str | None]
) -> ServiceView:
    """Sets (or with None removes) annotations of a Service, conditionally. Raises as `publish` does."""
    path = SERVICES.path(key.name, key.namespace, "status")
    body: dict[str, object] = {"metadata": _metadata(uid, resource_version, annotations)}
    return await _patch(client, path, body)


async def set_traffic_policy(
    client: KubeClient, key: ServiceKey, uid: str, resource_version: str, policy: str
) -> ServiceView:
    """Sets `spec.externalTrafficPolicy`, conditionally. The one thing of a spec that we write. Raises as `publish`."""
    body: dict[str, object] = {
        "metadata": _metadata(uid, resource_version, {}),
        "spec": {"externalTrafficPolicy": policy},
    }
    return await _patch(client, SERVICES.path(key.name, key.namespace), body)


def render(publication: Publication) -> dict[str, object]:
    """The body of the merge PATCH (RFC 7396). Lists are replaced whole by it, so conditions are sent all together."""
    status: dict[str, object] = {}
    if publication.ingress is not None:
        ingress = [{"ip": str(address), "ipMode": "VIP"} for address in publication.ingress]
        status["loadBalancer"] = {"ingress": ingress} if ingress else None
    if publication.conditions is not None:
        conditions = [_condition(c) for c in publication.conditions]
        status["conditions"] = conditions or None
    body: dict[str, object] = {
        "metadata": _metadata(publication.uid, publication.resource_version, publication.annotations)
    }
    return body | ({"status": status} if status else {})


def _metadata(uid: str, resource_version: str, annotations: Mapping[str, str | None]) -> dict[str, object]:
    metadata: dict[str, object] = {"uid": uid, "resourceVersion": resource_version}
    return metadata | ({"annotations": dict(annotations)} if annotations else {})


def _condition(condition: Condition) -> dict[str, object]:
    out: dict[str, object] = {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "lastTransitionTime": condition.last_transition_time,
    }
    if condition.observed_generation is not None:
        out["observedGeneration"] = condition.observed_generation
    return out


async def _patch(client: KubeClient, path: str, body: dict[str, object]) -> ServiceView:
    try:
        data = await client.request("PATCH", path, body=body, content_type=MERGE_PATCH)
    except Invalid as error:
        raise conflict_of(error) from error
    try:
        return decode_service(data)
    except Undecodable as error:
        raise Unavailable(f"PATCH {path}: answer not understood: {error}") from error


def conflict_of(error: Invalid) -> Invalid | Conflict:
    """A wrong uid in a patch is answered 422, as a change of an immutable field; for us it is a conflict."""
    if error.status == 422 and "metadata.uid" in str(error):
        return Conflict(str(error), status=error.status, kind_reason=error.kind_reason)
    return error
