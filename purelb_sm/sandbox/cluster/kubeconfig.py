"""Kubeconfig files for the processes on the nodes: the API server is at the node's own loopback, behind the proxy.

With a real API server only the address changes: its certificate is still checked, against the name that it has.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from purelb_sm.errors import InvalidInput
from purelb_sm.sandbox.cluster.layout import API_ADDRESSES, API_PORT
from purelb_sm.sandbox.cluster.proxy import Upstream

_DEFAULT_PORTS = {"https": 443, "http": 80}
# Entries that name a file, which a copy of the kubeconfig elsewhere must still find.
_FILES = ("certificate-authority", "client-certificate", "client-key", "tokenFile")


class InvalidKubeconfig(InvalidInput):
    """The kubeconfig cannot be read, or has no such context."""

    reason = "InvalidKubeconfig"


def upstream_of(kubeconfig: Path, context: str | None = None) -> Upstream:
    """Host and port of the API server that the (current) context means. Raises `InvalidKubeconfig`."""
    cluster = _cluster(_read(kubeconfig), context)
    server = urlsplit(str(cluster.get("server", "")))
    try:
        port = server.port or _DEFAULT_PORTS[server.scheme]
    except (ValueError, KeyError) as bad:
        raise InvalidKubeconfig(f"{kubeconfig}: server {cluster.get('server')!r} is no http or https URL") from bad
    if not server.hostname:
        raise InvalidKubeconfig(f"{kubeconfig}: server {cluster.get('server')!r} names no host")
    return server.hostname, port


def for_emulated_api(path: Path, address: str = API_ADDRESSES[0]) -> Path:
    """Writes a kubeconfig for an API server without TLS or users, as a node sees it."""
    return _write(
        path,
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "sandbox", "cluster": {"server": f"http://{_in_url(address)}:{API_PORT}"}}],
            "users": [{"name": "sandbox", "user": {}}],
            "contexts": [{"name": "sandbox", "context": {"cluster": "sandbox", "user": "sandbox"}}],
            "current-context": "sandbox",
        },
    )


def for_real_api(path: Path, kubeconfig: Path, context: str | None = None, address: str = API_ADDRESSES[0]) -> Path:
    """Writes a copy of the kubeconfig as a node needs it: the server at the node's loopback, its certificate checked
    against the name it was reached by before. Files it names are found from the copy too. Raises `InvalidKubeconfig`.
    """
    content = copy.deepcopy(_read(kubeconfig))
    if context is not None:
        content["current-context"] = context
    host, _port = upstream_of(kubeconfig, context)
    cluster = _cluster(content, context)
    scheme = urlsplit(str(cluster["server"])).scheme
    cluster["server"] = f"{scheme}://{_in_url(address)}:{API_PORT}"
    if scheme == "https":
        cluster.setdefault("tls-server-name", host)
    cluster.pop("proxy-url", None)
    for entry in (cluster, *(user.get("user") or {} for user in content.get("users") or [])):
        for key in _FILES:
            if entry.get(key):
                entry[key] = str((kubeconfig.parent / entry[key]).resolve())
    return _write(path, content)


def _read(kubeconfig: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(kubeconfig.read_text())
    except (OSError, yaml.YAMLError) as failed:
        raise InvalidKubeconfig(f"{kubeconfig}: {failed}") from failed
    if not isinstance(content, dict):
        raise InvalidKubeconfig(f"{kubeconfig}: not a kubeconfig")
    return content


def _cluster(content: dict[str, Any], context: str | None) -> dict[str, Any]:
    """The cluster entry of the context, to be read or changed in place."""
    wanted = context or content.get("current-context")
    chosen = _named(content, "contexts", "context", wanted)
    return _named(content, "clusters", "cluster", chosen.get("cluster"))


def _named(content: dict[str, Any], section: str, kind: str, name: object) -> dict[str, Any]:
    entries = content.get(section)
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("name") == name and isinstance(entry.get(kind), dict):
            found: dict[str, Any] = entry[kind]
            return found
    raise InvalidKubeconfig(f"the kubeconfig has no {kind} {name!r}")


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _write(path: Path, content: dict[str, Any]) -> Path:
    """Readable by its owner only: it may hold a key."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o600)
        yaml.safe_dump(content, file, sort_keys=False)
    return path
