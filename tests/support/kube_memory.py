"""The part of an API server that the writers need, in memory: objects with versions, conditional writes, faults."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from purelb_sm.errors import AlreadyExists, Conflict, KubeError, NotFound, Unavailable

Json = dict[str, Any]


class Memory:
    """The objects, by path. Shared by the connections to it."""

    def __init__(self) -> None:
        self.objects: dict[str, Json] = {}
        self.version = 0
        self.log: list[tuple[str, str, Any]] = []

    def handle(self, method: str, path: str, query: Mapping[str, str] | None, body: Any) -> Json:
        self.log.append((method, path, copy.deepcopy(body)))
        if method == "POST":
            return self._create(path, body)
        if method == "GET" and path not in self.objects and path.rsplit("/", 1)[-1] in ("nodeannouncements", "leases"):
            return self._list(path, query or {})
        if path not in self.objects:
            raise NotFound(f"{path} not found", status=404, kind_reason="NotFound")
        if method == "GET":
            return self.objects[path]
        if method == "DELETE":
            self._check(path, ((body or {}).get("preconditions") or {}).get("resourceVersion"))
            return self.objects.pop(path)
        self._check(path, body.get("metadata", {}).get("resourceVersion"))
        new = copy.deepcopy(body) if method == "PUT" else merge(self.objects[path], body)
        return self._store(path, new)

    def _create(self, path: str, body: Json) -> Json:
        target = f"{path}/{body['metadata']['name']}"
        if target in self.objects:
            raise AlreadyExists(f"{target} exists", status=409, kind_reason="AlreadyExists")
        return self._store(target, copy.deepcopy(body))

    def _check(self, path: str, version: str | None) -> None:
        if version is not None and version != self.objects[path]["metadata"]["resourceVersion"]:
            raise Conflict("the object has been modified", status=409, kind_reason="Conflict")

    def _store(self, path: str, item: Json) -> Json:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        self.objects[path] = item
        return item

    def _list(self, path: str, query: Mapping[str, str]) -> Json:
        name, _, value = query.get("labelSelector", "").partition("=")
        items = [
            item
            for where, item in self.objects.items()
            if where.startswith(path + "/") and (not name or item["metadata"].get("labels", {}).get(name) == value)
        ]
        return {"metadata": {"resourceVersion": str(self.version)}, "items": items}


def merge(old: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    out = copy.deepcopy(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merge(out.get(key), value)
    return out


class Connection:
    """One process's way to a Memory. Faults are its own: latency both ways, away, a list of errors to raise first."""

    def __init__(self, memory: Memory, rng: random.Random | None = None) -> None:
        self.memory = memory
        self.rng = rng or random.Random(0)
        self.away = False
        self.latency: Callable[[], float] = lambda: 0.0
        self.errors: list[KubeError] = []
        self.lose_answers = False

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        timeout_s: float | None = None,
    ) -> bytes:
        try:
            async with asyncio.timeout(timeout_s if timeout_s is not None else 10.0):
                return await self._exchange(method, path, query, body)
        except TimeoutError:
            raise Unavailable(f"{method} {path}: timed out") from None

    async def _exchange(self, method: str, path: str, query: Mapping[str, str] | None, body: object) -> bytes:
        await asyncio.sleep(self.latency())
        if self.errors:
            raise self.errors.pop(0)
        if self.away:
            await asyncio.sleep(1e6)
        answer = json.dumps(self.memory.handle(method, path, query, json.loads(json.dumps(body)))).encode()
        await asyncio.sleep(self.latency())
        if self.away or self.lose_answers:
            await asyncio.sleep(1e6)
        return answer
