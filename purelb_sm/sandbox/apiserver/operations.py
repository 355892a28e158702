"""Create, read, update, patch, delete: the life of one object, from the body that came in to what is stored.

Every write goes the same way: decode, check fields, defaults, what the kind says, metadata, ownership of fields,
store. All of it is synchronous, so nothing comes in between. Knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
from typing import Any

from purelb_sm.sandbox.apiserver import ownership, patching
from purelb_sm.sandbox.apiserver.builtin import DecodeError
from purelb_sm.sandbox.apiserver.cluster import Cluster
from purelb_sm.sandbox.apiserver.custom import CustomStrategy
from purelb_sm.sandbox.apiserver.intake import Request, accept, finish, metadata, read
from purelb_sm.sandbox.apiserver.objects import JSON, generated, new_uid, now
from purelb_sm.sandbox.apiserver.registry import Resource
from purelb_sm.sandbox.apiserver.status import (
    FieldError,
    StatusError,
    already_exists,
    bad_request,
    conflict,
    invalid,
    invalid_value,
    not_found,
    shown,
    success,
    terminating,
    unsupported_media_type,
)
from purelb_sm.sandbox.apiserver.storage import Entry, encode
from purelb_sm.sandbox.apiserver.strategy import Strategy, check_metadata, check_metadata_update


class Operations:
    """The verbs on single objects, over one cluster's store."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def find(self, request: Request) -> Entry:
        entry = self.cluster.store.bucket(request.resource.bucket).get(request.key)
        if entry is None:
            raise not_found(request.resource.plural, request.resource.group, request.name)
        return entry

    def shown(self, request: Request, entry: Entry) -> bytes:
        """The bytes of a stored object as the requested version shows it."""
        return self.cluster.shown(request.resource, entry)

    # --- create ------------------------------------------------------------------------------------------------

    def create(self, request: Request, body: JSON) -> Entry:
        resource, strategy = request.resource, self.cluster.strategy(request.resource)
        accept(request, body)
        meta = metadata(body)
        self._place(request, meta)
        for key in ("uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"):
            if key == "resourceVersion" and meta.get(key) not in (None, "", "0"):
                raise StatusError(500, "InternalError", "resourceVersion should not be set on objects to be created")
            meta.pop(key, None)
        meta.pop("generation", None)
        meta.pop("selfLink", None)
        meta.update(uid=new_uid(), creationTimestamp=now())
        if strategy.generation:
            meta["generation"] = 1
        self._defaults(request, strategy, body)
        strategy.prepare_create(body)
        ownership.record(request, ownership.NOTHING, body, None)
        request.name = meta.get("name", "")
        self._refuse(request, check_metadata(meta, strategy.names) + strategy.validate(body, None))
        self._check_namespace(request)
        if self.cluster.store.bucket(resource.bucket).get(request.key) is not None:
            raise already_exists(resource.plural, resource.group, request.name)
        return self._create(request, body)

    def _create(self, request: Request, body: JSON) -> Entry:
        finish(request.resource, body)
        stored = self.cluster.to_storage(request.resource, body)
        if request.dry_run:
            return Entry(request.key, 0, encode(stored), stored)
        return self.cluster.store.create(request.resource.bucket, request.key, stored)

    def _place(self, request: Request, meta: JSON) -> None:
        """Name and namespace of an object to create, from path and body."""
        namespace = meta.get("namespace") or request.namespace
        if request.resource.namespaced:
            if namespace != request.namespace:
                raise bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request"
                )
            meta["namespace"] = namespace
        else:
            meta.pop("namespace", None)
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = generated(meta["generateName"])

    def _check_namespace(self, request: Request) -> None:
        resource = request.resource
        if not resource.namespaced:
            return
        entry = self.cluster.store.bucket("namespaces").get(("", request.namespace))
        if entry is None:
            raise not_found("namespaces", "", request.namespace)
        if entry.obj["metadata"].get("deletionTimestamp"):
            raise terminating(resource.plural, resource.group, request.name, request.namespace)

    # --- update ------------------------------------------------------------------------------------------------

    def update(self, request: Request, body: JSON) -> tuple[Entry, bool]:
        """PUT; returns the stored entry and whether it was created."""
        resource, strategy = request.resource, self.cluster.strategy(request.resource)
        accept(request, body)
        meta = metadata(body)
        name = meta.setdefault("name", request.name)
        if name != request.name:
            raise bad_request(f"the name of the object ({name}) does not match the name on the URL ({request.name})")
        if resource.namespaced and (meta.get("namespace") or request.namespace) != request.namespace:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        entry = self.cluster.store.bucket(resource.bucket).get(request.key)
        if entry is None:
            if strategy.create_on_update and not request.subresource and not meta.get("resourceVersion"):
                return self.create(request, body), True
            raise not_found(resource.plural, resource.group, request.name)
        sent = meta.get("resourceVersion")
        if not sent and not strategy.unconditional_update:
            error = invalid_value("metadata.resourceVersion", 0, "must be specified for an update")
            raise invalid(resource.kind, resource.group, request.name, [error])
        if meta.get("uid") and meta["uid"] != entry.obj["metadata"]["uid"]:
            held = entry.obj["metadata"]["uid"]
            why = f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: {held}"
            raise conflict(resource.plural, resource.group, request.name, why)
        return self._write(request, strategy, entry, body), False

    def patch(self, request: Request, content_type: str, patch: Any) -> tuple[Entry, bool]:
        """Any of the four patch types; returns the stored entry and whether it was created (apply only)."""
        resource, strategy = request.resource, self.cluster.strategy(request.resource)
        if content_type == patching.APPLY_PATCH:
            return self._apply(request, strategy, patch)
        entry = self.find(request)
        head = {"apiVersion": resource.api_version, "kind": resource.kind}
        current = {**head, **self.cluster.to_served(resource, entry)}
        if content_type == patching.JSON_PATCH:
            patched = patching.json_patch(current, patch)
        elif not isinstance(patch, dict):
            raise bad_request("error decoding patch: json: cannot unmarshal into Go value of type map")
        elif content_type == patching.MERGE_PATCH:
            patched = patching.merge_patch(current, patch)
        elif content_type == patching.STRATEGIC_PATCH and not resource.custom:
            patched = patching.strategic_patch(current, patch, resource.schema)
        elif resource.custom:
            kinds = f"{patching.JSON_PATCH}, {patching.MERGE_PATCH}, {patching.APPLY_PATCH}"
            text = "the body of the request was in an unknown format - accepted media types include: "
            raise unsupported_media_type(text + kinds)
        else:
            raise unsupported_media_type("415: Unsupported Media Type", {})
        try:
            read(request, patched, self.cluster.view(resource, entry))
        except DecodeError as error:
            raise _unreadable_patch(patched, error) from error
        return self._write(request, strategy, entry, patched), False

    def _write(
        self,
        request: Request,
        strategy: Strategy,
        entry: Entry,
        body: JSON,
        applied: ownership.Applied | None = None,
    ) -> Entry:
        """The common end of update and patch: everything from defaults to the store."""
        resource = request.resource
        old = self.cluster.view(resource, entry)
        meta, old_meta = metadata(body), old["metadata"]
        sent = meta.get("resourceVersion")
        if sent and sent != old_meta["resourceVersion"]:
            raise conflict(resource.plural, resource.group, request.name)
        self._defaults(request, strategy, body)
        self._keep_metadata(request, meta, old_meta)
        errors = check_metadata_update(meta, old_meta)
        if errors:
            raise invalid(resource.kind, resource.group, request.name, errors, doubled=_doubled(errors))
        # What the server itself fills in below is owned by nobody.
        ownership.record(request, old, body, applied)
        if request.subresource == "status":
            strategy.prepare_status(body, old)
            meta = body["metadata"]
        else:
            strategy.prepare_update(body, old)
        if meta is not old_meta and meta != old_meta:
            self._refuse(request, check_metadata(meta, strategy.names))
        if request.subresource == "status":
            # Complete already: it was read, and the rest is as it was.
            self._refuse(request, strategy.validate_status(body, old))
        else:
            finish(resource, body, old)
            self._refuse(request, strategy.validate(body, old))
        if strategy.generation and strategy.changed(body, old):
            meta["generation"] = old_meta.get("generation", 1) + 1
        if body == old:
            return entry
        return self._store(request, entry, body)

    def _store(self, request: Request, entry: Entry, body: JSON) -> Entry:
        meta = body["metadata"]
        stored = self.cluster.to_storage(request.resource, body)
        if request.dry_run:
            return Entry(entry.key, entry.rv, encode(stored), stored)
        bucket = request.resource.bucket
        if meta.get("deletionTimestamp") and not meta.get("finalizers") and self.cluster.may_go(bucket, stored):
            # The writer is shown what it wrote, watchers the object as it was before.
            gone = self.cluster.store.delete(bucket, entry)
            meta["resourceVersion"] = str(gone.rv)
            return Entry(entry.key, gone.rv, encode(stored), stored)
        return self.cluster.store.update(bucket, entry, stored)

    @staticmethod
    def _keep_metadata(request: Request, meta: JSON, old: JSON) -> None:
        """What the server alone sets stays as it was, unless the writer contradicts, which is checked next."""
        for key in ("uid", "creationTimestamp", "name", "namespace"):
            if not meta.get(key) and key in old:
                meta[key] = old[key]
        for key in ("resourceVersion", "generation", "deletionTimestamp", "deletionGracePeriodSeconds"):
            if key in old:
                meta[key] = old[key]
            else:
                meta.pop(key, None)
        meta.pop("selfLink", None)
        if "managedFields" not in meta and "managedFields" in old:
            meta["managedFields"] = old["managedFields"]

    # --- apply -------------------------------------------------------------------------------------------------

    def _apply(self, request: Request, strategy: Strategy, patch: Any) -> tuple[Entry, bool]:
        """Server-side apply: the manager's former fields that it no longer names go, the named ones are set."""
        resource = request.resource
        if not request.manager:
            error = FieldError("fieldManager", "FieldValueRequired", "Required value: is required for apply patch")
            raise invalid("PatchOptions", "meta.k8s.io", "", [error])
        if not isinstance(patch, dict):
            raise bad_request("error decoding YAML: the apply patch is not an object")
        accept(request, patch, complete=False)
        meta = metadata(patch)
        if meta.get("managedFields"):
            raise bad_request("metadata.managedFields must be nil")
        if meta.setdefault("name", request.name) != request.name:
            text = f"the name of the object ({meta['name']}) does not match the name on the URL ({request.name})"
            raise bad_request(text)
        entry = self.cluster.store.bucket(resource.bucket).get(request.key)
        current = {"metadata": {}} if entry is None else self.cluster.to_served(resource, entry)
        with contextlib.suppress(KeyError):
            del meta["resourceVersion"]
        applied = ownership.apply(request, current, patch)
        if entry is not None:
            return self._write(request, strategy, entry, applied.result, applied=applied), False
        if request.subresource:
            raise not_found(resource.plural, resource.group, request.name)
        return self._apply_new(request, strategy, applied), True

    def _apply_new(self, request: Request, strategy: Strategy, applied: ownership.Applied) -> Entry:
        body = applied.result
        meta = metadata(body)
        self._place(request, meta)
        meta.update(uid=new_uid(), creationTimestamp=now())
        if strategy.generation:
            meta["generation"] = 1
        self._defaults(request, strategy, body)
        strategy.prepare_create(body)
        ownership.record(request, ownership.NOTHING, body, applied)
        self._refuse(request, check_metadata(meta, strategy.names) + strategy.validate(body, None))
        self._check_namespace(request)
        return self._create(request, body)

    # --- delete ------------------------------------------------------------------------------------------------

    def delete(self, request: Request, options: JSON) -> tuple[bytes, int]:
        """The answer's body and status code; raises StatusError."""
        resource, strategy = request.resource, self.cluster.strategy(request.resource)
        entry = self.find(request)
        self._preconditions(resource, entry, options.get("preconditions") or {})
        strategy.validate_delete(entry.obj)
        meta = entry.obj["metadata"]
        if self.cluster.lingers(resource.bucket, entry.obj):
            if not meta.get("deletionTimestamp") and not request.dry_run:
                entry = self._begin_deletion(resource, strategy, entry)
            return self.shown(request, entry), 200
        if not request.dry_run:
            gone = self.cluster.store.delete(resource.bucket, entry)
        if strategy.returns_deleted:
            return self.shown(request, entry if request.dry_run else gone), 200
        return encode(success(resource.plural, resource.group, request.name, meta["uid"])), 200

    def _begin_deletion(self, resource: Resource, strategy: Strategy, entry: Entry) -> Entry:
        """The first of two steps: the mark that it is to go, while finalizers or content hold it."""
        obj = entry.copy()
        self.cluster.mark_deletion(resource.bucket, obj, counts=strategy.generation)
        return self.cluster.store.update(resource.bucket, entry, obj)

    @staticmethod
    def _preconditions(resource: Resource, entry: Entry, wanted: JSON) -> None:
        meta = entry.obj["metadata"]
        if wanted.get("uid") and wanted["uid"] != meta["uid"]:
            why = (
                f"the UID in the precondition ({wanted['uid']}) does not match the UID in record ({meta['uid']}). "
                "The object might have been deleted and then recreated"
            )
        elif wanted.get("resourceVersion") and wanted["resourceVersion"] != meta["resourceVersion"]:
            why = (
                f"the ResourceVersion in the precondition ({wanted['resourceVersion']}) does not match the "
                f"ResourceVersion in record ({meta['resourceVersion']}). The object might have been modified"
            )
        else:
            return
        name = meta["name"]
        text = f'Operation cannot be fulfilled on {resource.kind} "{name}": {why}'
        details = {"name": name, "group": resource.group, "kind": resource.kind}
        raise StatusError(409, "Conflict", text, {k: v for k, v in details.items() if v})

    # --- common ------------------------------------------------------------------------------------------------

    def _defaults(self, request: Request, strategy: Strategy, body: JSON) -> None:
        strategy.defaults(body)
        if isinstance(strategy, CustomStrategy):
            request.warnings += strategy.drain_warnings()

    def _refuse(self, request: Request, errors: list[FieldError]) -> None:
        strategy = self.cluster.strategy(request.resource)
        if isinstance(strategy, CustomStrategy):
            request.warnings += strategy.drain_warnings()
        if errors:
            raise invalid(request.resource.kind, request.resource.group, request.name, errors)


def _doubled(errors: list[FieldError]) -> bool:
    return any(e.field == "metadata.finalizers" for e in errors)


def _unreadable_patch(patched: JSON, error: DecodeError) -> StatusError:
    """A patch whose result does not decode: 422 on the field `patch`, with the whole result quoted."""
    text = encode(patched).decode()
    return invalid("", "", "", [FieldError("patch", "FieldValueInvalid", f"Invalid value: {shown(text)}: {error}")])
