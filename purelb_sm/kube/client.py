"""The connection to the API server: bytes in, bytes out, errors by kind.

Of the official package only the transport is used (configuration, authentication, TLS, the connection pool). Its
models, watch, informer and leader election are not: they are slow, drop fields they do not know, and give up or spin on
a broken answer. This is the only module that imports it, since mypy takes half a minute to read it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import aiohttp
import msgspec
import yaml
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from purelb_sm import __version__
from purelb_sm.errors import Unavailable
from purelb_sm.kube.answers import error_of
from purelb_sm.kube.trust import trusting_nobody

JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"

_TOKEN_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_TOKEN_PERIOD_S: Final = 60.0
_READ_BUFFER: Final = 2**17
_UNUSABLE: Final = (config.ConfigException, yaml.YAMLError, OSError, ValueError, LookupError, TypeError, AttributeError)
_BROKEN: Final = (aiohttp.ClientError, TimeoutError, OSError)

T = TypeVar("T")
Refresh = Callable[[], Awaitable[object]]


class Silent(Unavailable):
    """A watch brought no byte for its idle time: the connection may be dead without anybody having said so."""


class KubeClient:
    """One connection pool to one API server. Use as `async with await KubeClient.connect(...) as client`.

    Every call raises a `KubeError` by what the server answered, `Unavailable` where it answered nothing that makes
    sense. Nothing is retried here but a request refused for a token that has been renewed meanwhile: callers know
    better whether their request is still wanted.
    """

    def __init__(self, api: ApiClient, *, timeout_s: float = 10.0, refresh: Refresh | None = None) -> None:
        self._api = api
        self._timeout_s = timeout_s
        self._refresh = refresh

    @classmethod
    async def connect(
        cls, kubeconfig: str | None = None, *, pool_size: int = 64, timeout_s: float = 10.0, component: str = "purelb"
    ) -> KubeClient:
        """A client for the cluster of `kubeconfig`, else of $KUBECONFIG, else the one we run in, else ~/.kube/config.

        `timeout_s` is for a whole request, watches excepted. No request is made yet. Raises `Unavailable` if no
        configuration is found or it cannot be read.
        """
        configuration = Configuration()
        try:
            refresh = await _configure(configuration, kubeconfig or os.environ.get("KUBECONFIG") or None)
        except _UNUSABLE as error:
            raise Unavailable(f"no usable cluster configuration: {error}") from error
        return cls(_transport(configuration, pool_size, component), timeout_s=timeout_s, refresh=refresh)

    @classmethod
    def at(
        cls, url: str, *, token: str = "", pool_size: int = 64, timeout_s: float = 10.0, component: str = "purelb"
    ) -> KubeClient:
        """A client for the API server at `url`, with a bearer token or none. For tests and the sandbox."""
        configuration = Configuration()
        configuration.host = url.rstrip("/")
        if token:
            configuration.api_key["BearerToken"] = f"Bearer {token}"
        return cls(_transport(configuration, pool_size, component), timeout_s=timeout_s)

    @property
    def host(self) -> str:
        """The URL of the API server, for messages."""
        return str(self._api.configuration.host)

    async def __aenter__(self) -> KubeClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        api: Any = self._api
        await api.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = JSON,
        timeout_s: float | None = None,
    ) -> bytes:
        """One request, and the bytes of its answer. Raises KubeError (see the class)."""
        timeout = aiohttp.ClientTimeout(total=self._timeout_s if timeout_s is None else timeout_s)
        try:
            response = await self._send(method, path, query, body, content_type, timeout)
            data: bytes = await response.read()
        except _BROKEN as error:
            raise Unavailable(f"{method} {path}: {_said(error)}") from error
        if response.status >= 300:
            raise error_of(response.status, data, response.headers, f"{method} {path}")
        return data

    async def get(
        self,
        path: str,
        decode: Callable[[bytes], T],
        *,
        query: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> T:
        """GET, with the answer read by `decode`. An answer that is not what it should be is `Unavailable`."""
        data = await self.request("GET", path, query=query, timeout_s=timeout_s)
        try:
            return decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Unavailable(f"GET {path}: answer not understood: {error}") from error

    async def stream(self, path: str, query: Mapping[str, str], *, idle_s: float) -> AsyncGenerator[bytes, None]:
        """The lines of a watch as they come. Ends when the server ends it; close it with `contextlib.aclosing`.

        Raises `Silent` after `idle_s` without a byte, `Unavailable` if the connection breaks or ends within a line,
        and by status as `request` does.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(10.0, idle_s), sock_read=idle_s)
        try:
            response = await self._send("GET", path, query, None, JSON, timeout)
        except _BROKEN as error:
            raise Unavailable(f"watch {path}: {_said(error)}") from error
        try:
            if response.status >= 300:
                data = await response.read()
                raise error_of(response.status, data, response.headers, f"watch {path}")
            yield b""  # The watch stands: a sign of life even where nothing happens.
            async for line in _lines(response):
                yield line
        except aiohttp.SocketTimeoutError as error:
            raise Silent(f"watch {path}: no byte for {idle_s:g} s") from error
        except _BROKEN as error:
            raise Unavailable(f"watch {path}: {_said(error)}") from error
        finally:
            response.close()

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: object,
        content_type: str,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        response = await self._send_once(method, path, query, body, content_type, timeout)
        if response.status == 401 and self._refresh is not None:
            # The token may have been renewed since we last looked.
            response.release()
            with contextlib.suppress(OSError, config.ConfigException):
                await self._refresh()
            response = await self._send_once(method, path, query, body, content_type, timeout)
        return response

    async def _send_once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: object,
        content_type: str,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        url = f"{path}?{urlencode(query)}" if query else path
        headers = {"Content-Type": content_type, "Accept": JSON}
        # The body goes past the package's clean-up of models, which walks all of it: ours is plain JSON already.
        _, whole_url, headers, _, _ = await self._api.param_serialize(
            method, url, header_params=headers, auth_settings=["BearerToken"]
        )
        answer: Any = await self._api.call_api(method, whole_url, headers, body, _request_timeout=timeout)
        response: aiohttp.ClientResponse = answer.response
        return response


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    parts: list[bytes] = []
    async for chunk in response.content.iter_any():
        first, *rest = chunk.split(b"\n")
        parts.append(first)
        for part in rest:
            line = b"".join(parts)
            parts = [part]
            if line:
                yield line
    if b"".join(parts).strip():
        raise aiohttp.ClientPayloadError("ended within an event")


def _said(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _proxy_wanted() -> bool:
    return any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy"))


def _transport(configuration: Configuration, pool_size: int, component: str) -> ApiClient:
    configuration.connection_pool_maxsize = pool_size
    configuration.client_session_kwargs = {
        # aiohttp looks for proxies and .netrc on every request if told to, which halves the throughput.
        "trust_env": _proxy_wanted(),
        "read_bufsize": _READ_BUFFER,
        "cookie_jar": aiohttp.DummyCookieJar(),
    }
    with trusting_nobody() if configuration.host.startswith("http://") else contextlib.nullcontext():
        api = ApiClient(configuration)
    api.user_agent = f"{component}/{__version__}"
    return api


async def _configure(configuration: Configuration, kubeconfig: str | None) -> Refresh | None:
    """Fills `configuration`; answers with what renews its token, where it has one that can be renewed."""
    # The package's loaders carry no types.
    load: Any = config
    if kubeconfig is None and os.environ.get("KUBERNETES_SERVICE_HOST") and _TOKEN_FILE.exists():
        # The package renews the token by the wall clock, which may jump; we do it by the monotonic one.
        load.load_incluster_config(client_configuration=configuration, try_refresh_token=False)
        token = _TokenFile(_TOKEN_FILE, configuration)
        token.maybe_read()
        setattr(configuration, "refresh_api_key_hook", token.maybe_read)  # noqa: B010  # declared as None
        return token.refresh
    if kubeconfig is not None:
        _must_exist(kubeconfig)
    loader = await load.load_kube_config(kubeconfig, client_configuration=configuration, persist_config=False)
    return lambda: loader.load_and_set(configuration)


def _must_exist(kubeconfig: str) -> None:
    """The package takes an absent file for an empty one, and then talks to localhost."""
    for name in kubeconfig.split(os.pathsep):
        if name and not Path(name).expanduser().exists():
            raise FileNotFoundError(f"{name} does not exist")


class _TokenFile:
    """A projected service account token: the kubelet renews the file, we read it again every minute."""

    def __init__(self, path: Path, configuration: Configuration, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._configuration = configuration
        self._clock = clock
        self._due = float("-inf")

    def maybe_read(self, _configuration: Configuration | None = None) -> None:
        if self._clock() >= self._due:
            # An unreadable file leaves the old token in place: it is valid for some time yet.
            with contextlib.suppress(OSError):
                self.read()

    async def refresh(self) -> None:
        self.read()

    def read(self) -> None:
        self._due = self._clock() + _TOKEN_PERIOD_S
        token = self._path.read_text(encoding="ascii").strip()
        if token:
            self._configuration.api_key["BearerToken"] = f"Bearer {token}"
