"""Bodies of requests, decoded: JSON, YAML, or protobuf as kubectl sends what it makes itself."""

from __future__ import annotations

from typing import Any

import msgspec
import yaml
from aiohttp import web

from purelb_sm.sandbox.apiserver import protobuf
from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.status import bad_request


class _YamlLoader(yaml.SafeLoader):
    """YAML as JSON has it: a date stays a string."""


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


async def read_body(http: web.Request, content_type: str = "") -> Any:
    """The decoded body, `{}` where there is none; raises 400."""
    raw = await http.read()
    content_type = content_type or http.headers.get("Content-Type", "").split(";")[0]
    if not raw:
        return {}
    if content_type == protobuf.CONTENT_TYPE:
        try:
            return protobuf.decode(raw)
        except protobuf.ProtobufError as error:
            raise bad_request(str(error)) from error
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if "yaml" not in content_type:
            raise bad_request(f"the body could not be read as JSON: {error}") from error
    try:
        return yaml.load(raw, _YamlLoader)  # noqa: S506 (a SafeLoader, less the dates)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise bad_request(f"error decoding YAML: {error}") from error


async def read_object(http: web.Request) -> JSON:
    body = await read_body(http)
    if not isinstance(body, dict):
        raise bad_request("the object provided is unrecognized (must be of type object)")
    return body
