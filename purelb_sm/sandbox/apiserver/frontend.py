"""The way of a request: path to resource, method to operation, result to response.

One handler takes every path, as the kinds that are served change while the server runs. Knows HTTP, and nothing of
what is stored.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import web

from purelb_sm.sandbox.apiserver import discovery, faults, lists, openapi, reviews, streams, tables
from purelb_sm.sandbox.apiserver.bodies import read_body, read_object
from purelb_sm.sandbox.apiserver.cluster import Cluster
from purelb_sm.sandbox.apiserver.intake import Request
from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.operations import Operations
from purelb_sm.sandbox.apiserver.registry import Resource
from purelb_sm.sandbox.apiserver.status import StatusError, bad_request, method_not_allowed, not_found
from purelb_sm.sandbox.apiserver.storage import Entry, encode

log = structlog.get_logger(__name__)

_JSON = {"Content-Type": "application/json"}
_HEALTH = ("/healthz", "/livez", "/readyz")


class _NoPageError(Exception):
    """Nothing is served under this path: a plain 404, as from a server that never heard of it."""


@dataclass(frozen=True)
class Target:
    """What a path points at; `namespace` is None for a list over all of them."""

    resource: Resource
    namespace: str | None
    name: str
    subresource: str


class Frontend:
    """Turns requests into operations on one cluster."""

    def __init__(self, cluster: Cluster, tokens: reviews.Tokens, injected: faults.Faults, *, bookmark_s: float) -> None:
        self._cluster = cluster
        self._operations = Operations(cluster)
        self._tokens = tokens
        self._faults = injected
        self._bookmark_s = bookmark_s
        self.ending = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """The entry of every request; never raises, besides what aiohttp needs for a broken connection."""
        try:
            fault = None
            if not request.path.startswith("/sandbox/"):
                fault = self._faults.take(request)
            if fault is not None:
                spoilt = await faults.answer(fault, request)
                if spoilt is not None:
                    return spoilt
            response = await self._route(request, fault)
            if fault is not None and fault.kind == "truncate" and isinstance(response, web.Response):
                return await faults.truncated(request, response)
            return response
        except StatusError as error:
            headers = dict(_JSON)
            if error.retry_after_s is not None:
                headers["Retry-After"] = str(error.retry_after_s)
            return web.Response(body=encode(error.body), status=error.code, headers=headers)
        except _NoPageError:
            return web.Response(text="404 page not found\n", status=404, content_type="text/plain")
        except web.HTTPRequestEntityTooLarge:
            text = "Request entity too large: limit is 3145728"
            body = StatusError(413, "RequestEntityTooLarge", text, {}).body
            return web.Response(body=encode(body), status=413, headers=_JSON)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            log.exception("request_failed", method=request.method, path=request.path_qs)
            body = StatusError(500, "InternalError", f"Internal error occurred: {error}", {}).body
            return web.Response(body=encode(body), status=500, headers=_JSON)

    async def _route(self, request: web.Request, fault: faults.Fault | None) -> web.StreamResponse:
        path = request.path
        if path.startswith("/sandbox/"):
            return await self._sandbox(request)
        if path.startswith(_HEALTH):
            return web.Response(text="ok", content_type="text/plain")
        user = self._tokens.user(request.headers.get("Authorization", ""))
        parts = [p for p in path.split("/") if p]
        if parts[:1] == ["api"] and len(parts) > 2:
            return await self._resource(request, "", parts[1], parts[2:], user, fault)
        if parts[:1] == ["apis"] and len(parts) > 3:
            return await self._resource(request, parts[1], parts[2], parts[3:], user, fault)
        return self._document(request, parts)

    # --- discovery and documents -------------------------------------------------------------------------------

    def _document(self, request: web.Request, parts: list[str]) -> web.Response:
        if request.method not in ("GET", "HEAD"):
            raise method_not_allowed()
        registry = self._cluster.registry
        accept = request.headers.get("Accept", "")
        body: JSON | None = None
        content_type = "application/json"
        if parts in (["api"], ["apis"]) and "APIGroupDiscoveryList" in accept and "v=v2;" in accept + ";":
            body, content_type = discovery.aggregated(registry, core=parts == ["api"]), discovery.AGGREGATED
        elif parts == ["api"]:
            body = discovery.api_versions(request.host)
        elif parts == ["apis"]:
            body = discovery.group_list(registry)
        elif parts == ["version"]:
            body = discovery.VERSION
        elif parts[:1] == ["api"] and len(parts) == 2:
            body = discovery.resource_list(registry, "", parts[1])
        elif parts[:1] == ["apis"] and len(parts) == 2:
            body = discovery.group(registry, parts[1])
            body = {"kind": "APIGroup", "apiVersion": "v1", **body} if body else None
        elif parts[:1] == ["apis"] and len(parts) == 3:
            body = discovery.resource_list(registry, parts[1], parts[2])
        elif parts == ["openapi", "v3"]:
            body = openapi.index(registry)
        elif parts[:3] == ["openapi", "v3", "api"] and len(parts) == 4:
            body = openapi.document_of(registry, "", parts[3])
        elif parts[:3] == ["openapi", "v3", "apis"] and len(parts) == 5:
            body = openapi.document_of(registry, parts[3], parts[4])
        elif not parts:
            body = {"paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]}
        if body is None:
            raise _NoPageError
        return web.Response(body=encode(body), headers={"Content-Type": content_type})

    # --- objects -----------------------------------------------------------------------------------------------

    def _target(self, group: str, version: str, rest: list[str]) -> Target:
        namespace: str | None = None
        if rest[0] == "namespaces" and len(rest) > 2 and self._in_namespace(group, version, rest):
            namespace, rest = rest[1], rest[2:]
        resource = self._cluster.registry.find(group, version, rest[0])
        if resource is None or len(rest) > 3:
            raise _NoPageError
        if resource.namespaced and namespace is None and len(rest) > 1:
            raise _NoPageError
        if not resource.namespaced and namespace is not None:
            raise _NoPageError
        name, subresource = (rest[1] if len(rest) > 1 else ""), (rest[2] if len(rest) > 2 else "")
        return Target(resource, namespace, name, subresource)

    def _in_namespace(self, group: str, version: str, rest: list[str]) -> bool:
        """`namespaces/X/status` is a part of the namespace itself, `namespaces/X/services` is in it."""
        return self._cluster.registry.find(group, version, rest[2]) is not None

    async def _resource(
        self, http: web.Request, group: str, version: str, rest: list[str], user: str, fault: faults.Fault | None
    ) -> web.StreamResponse:
        target = self._target(group, version, rest)
        resource = target.resource
        if not target.name:
            return await self._collection(http, target, user, fault)
        if not resource.stored:
            raise not_found(resource.plural, resource.group, target.name)
        if target.subresource and target.subresource != "status":
            known = resource.subresource(target.subresource)
            if known is None:
                raise _NoPageError
            raise StatusError(501, "NotImplemented", f"the sandbox has no {resource.plural}/{known.name}", {})
        if target.subresource == "status" and not resource.has_status:
            raise _NoPageError
        if http.method in ("GET", "HEAD"):
            if faults.is_watch(http):
                return await self._watch(http, target, fault)
            return self._get(http, target)
        request = self._request(http, target)
        operations = self._operations
        if http.method == "PUT":
            entry, created = operations.update(request, await read_object(http))
            return self._answer(http, request, entry, 201 if created else 200)
        if http.method == "PATCH":
            content_type = http.headers.get("Content-Type", "").split(";")[0].strip()
            entry, created = operations.patch(request, content_type, await read_body(http, content_type))
            return self._answer(http, request, entry, 201 if created else 200)
        if http.method == "DELETE":
            options = await read_body(http) if http.can_read_body else {}
            body, code = operations.delete(self._delete_options(request, options), options or {})
            return web.Response(body=body, status=code, headers=_JSON)
        raise method_not_allowed()

    def _request(self, http: web.Request, target: Target) -> Request:
        query = http.query
        manager = query.get("fieldManager", "")
        if not manager and "apply-patch" not in http.headers.get("Content-Type", ""):
            # Without a name of its own a client is known by the program it says it is.
            manager = http.headers.get("User-Agent", "unknown").split("/")[0]
        if query.get("dryRun", "All") != "All":
            raise bad_request(f'invalid dryRun "{query["dryRun"]}": only "All" is supported')
        return Request(
            target.resource,
            target.namespace or "",
            target.name,
            target.subresource,
            manager,
            query.get("fieldValidation") or "Warn",
            "dryRun" in query,
            query.get("force") in ("true", "1"),
        )

    @staticmethod
    def _delete_options(request: Request, options: Any) -> Request:
        if isinstance(options, dict) and options.get("dryRun"):
            request.dry_run = True
        return request

    async def _collection(
        self, http: web.Request, target: Target, user: str, fault: faults.Fault | None
    ) -> web.StreamResponse:
        resource = target.resource
        if http.method == "POST":
            body = await read_object(http)
            reviewed = reviews.review(resource.plural, body, self._tokens, user)
            if reviewed is not None:
                return web.Response(body=encode(reviewed), status=201, headers=_JSON)
            if "create" not in resource.verbs or not resource.stored or (resource.namespaced and not target.namespace):
                raise method_not_allowed()
            request = self._request(http, target)
            return self._answer(http, request, self._operations.create(request, body), 201)
        if not resource.stored:
            raise method_not_allowed()
        if http.method in ("GET", "HEAD"):
            if faults.is_watch(http):
                return await self._watch(http, target, fault)
            query = self._query(http, target)
            return web.Response(body=lists.list_objects(self._cluster, query), headers=_JSON)
        if http.method == "DELETE" and "deletecollection" in resource.verbs:
            return await self._delete_collection(http, target)
        raise method_not_allowed()

    async def _delete_collection(self, http: web.Request, target: Target) -> web.Response:
        options = (await read_body(http) if http.can_read_body else {}) or {}
        query = self._query(http, target)
        listed = lists.list_objects(self._cluster, query)
        entries = lists.selected(self._cluster, query)
        for entry in entries:
            one = Target(target.resource, entry.key[0], entry.key[1], "")
            self._operations.delete(self._delete_options(self._request(http, one), options), options)
        return web.Response(body=listed, headers=_JSON)

    def _query(self, http: web.Request, target: Target) -> lists.Query:
        params: Mapping[str, str] = http.query
        table = _wants_table(http)
        namespace = target.namespace if target.resource.namespaced else ""
        return lists.parse(self._cluster, target.resource, namespace, target.name, params, table=table)

    def _get(self, http: web.Request, target: Target) -> web.Response:
        request = Request(target.resource, target.namespace or "", target.name)
        entry = self._operations.find(request)
        return self._answer(http, request, entry, 200)

    def _answer(self, http: web.Request, request: Request, entry: Entry, code: int) -> web.Response:
        resource = request.resource
        if _wants_table(http):
            meta: JSON = {"resourceVersion": str(entry.rv)}
            include = http.query.get("includeObject", "Metadata")
            body = encode(tables.table(self._cluster, resource, [entry], meta, include))
        else:
            body = self._operations.shown(request, entry)
        response = web.Response(body=body, status=code, headers=_JSON)
        for warning in dict.fromkeys([*request.warnings, *([resource.deprecation] if resource.deprecation else [])]):
            escaped = warning.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
            response.headers.add("Warning", f'299 - "{escaped}"')
        return response

    async def _watch(self, http: web.Request, target: Target, fault: faults.Fault | None) -> web.StreamResponse:
        watch = lists.Watch(self._cluster, self._query(http, target), self._bookmark_s)
        return await streams.send(http, watch, fault, self.ending)

    # --- for tests only ----------------------------------------------------------------------------------------

    async def _sandbox(self, request: web.Request) -> web.Response:
        """`/sandbox/…`: faults and compaction, from this machine only."""
        if not _from_loopback(request):
            raise StatusError(403, "Forbidden", "only from loopback", {})
        answer: Any
        match request.method, request.path:
            case "GET", "/sandbox/faults":
                answer = self._faults.shown()
            case "POST", "/sandbox/faults":
                answer = self._faults.add(faults.parse(await read_body(request))).shown()
            case "DELETE", "/sandbox/faults":
                if request.query.get("number", "").isdigit():
                    self._faults.remove(int(request.query["number"]))
                else:
                    self._faults.clear()
                answer = []
            case "POST", "/sandbox/compact":
                answer = {"resourceVersion": str(self._cluster.store.compact())}
            case _:
                raise _NoPageError
        return web.Response(body=encode(answer), headers=_JSON)


def _from_loopback(request: web.Request) -> bool:
    peer = request.transport.get_extra_info("peername") if request.transport else None
    try:
        return isinstance(peer, tuple) and ipaddress.ip_address(peer[0]).is_loopback
    except ValueError:
        return False


def _wants_table(http: web.Request) -> bool:
    return "as=Table" in http.headers.get("Accept", "")
