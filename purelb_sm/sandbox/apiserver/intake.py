"""What came in: the request, and the first reading of its object.

Reading says whether this is an object of the kind at all, and makes it what the kind's type would have made of it:
known fields only, of the right types, empty values as the type prints them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from purelb_sm.sandbox.apiserver.builtin import DecodeError, Reader, metadata_schema, tidy
from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.registry import Resource
from purelb_sm.sandbox.apiserver.schema import prune, unknown_fields
from purelb_sm.sandbox.apiserver.status import bad_request, shown
from purelb_sm.sandbox.apiserver.storage import Key


@dataclass
class Request:
    """What a write needs to know beside the object: where, by whom, how strict, for show or for real."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    manager: str = "unknown"
    field_validation: str = "Warn"
    dry_run: bool = False
    force: bool = False
    warnings: list[str] = field(default_factory=list)

    @property
    def key(self) -> Key:
        return (self.namespace, self.name)


def metadata(body: JSON) -> JSON:
    """The metadata of an object, made if there is none; raises 400."""
    meta = body.get("metadata")
    if meta is None:
        meta = body["metadata"] = {}
    if not isinstance(meta, dict):
        raise bad_request("metadata is not an object")
    return meta


def accept(request: Request, body: JSON, *, complete: bool = True) -> None:
    """`read` for an object that was sent: 400 where it cannot be read."""
    try:
        read(request, body, None, complete=complete)
    except DecodeError as error:
        kind, version = request.resource.kind, request.resource.version
        raise bad_request(f'{kind} in version "{version}" cannot be handled as a {kind}: {error}') from error


def read(request: Request, body: JSON, old: JSON | None, *, complete: bool = True) -> None:
    """Is it an object of this kind, and of known fields? Unknown ones are refused, warned of, or dropped.

    What equals its counterpart in `old` is not looked at again. An applied configuration is not `complete`: what it
    leaves out must not come in as an empty value. Raises DecodeError, or StatusError 400.
    """
    resource = request.resource
    version, kind = body.pop("apiVersion", resource.api_version), body.pop("kind", resource.kind)
    if version != resource.api_version:
        raise bad_request(
            f"the API version in the data ({version}) does not match the expected API version ({resource.api_version})"
        )
    if kind != resource.kind:
        raise bad_request(f"{kind} in version {shown(version)} cannot be handled as a {resource.kind}")
    meta = metadata(body)
    reader = Reader(complete)
    if not resource.custom:
        reader.read(resource.schema, body, old)
    else:
        reader.read(metadata_schema(), meta, None if old is None else old["metadata"], "metadata")
        reader.unknown += unknown_fields(resource.schema, body)
        prune(resource.schema, body)
    _report_unknown(request, reader.unknown)


def _report_unknown(request: Request, unknown: list[str]) -> None:
    resource = request.resource
    if not unknown or request.field_validation == "Ignore":
        return
    if request.field_validation == "Strict":
        reasons = ", ".join(f'unknown field "{path}"' for path in unknown)
        raise bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
            f"strict decoding error: {reasons}"
        )
    request.warnings += [f'unknown field "{path}"' for path in unknown]


def finish(resource: Resource, body: JSON, old: JSON | None = None) -> None:
    """Empty values as the kind prints them, once more, after what its strategy did."""
    if resource.custom:
        tidy(metadata_schema(), body["metadata"])
    else:
        tidy(resource.schema, body, old)
