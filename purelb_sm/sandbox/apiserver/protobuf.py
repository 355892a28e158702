"""Bodies in protobuf, as kubectl sends what it makes itself; answers are always JSON, which it takes as well.

Only reading: the numbers and types of fields are in the table of `builtin.py`. The envelope is runtime.Unknown behind
four magic bytes. Source: the protobuf encoding page of the Kubernetes API concepts.
"""

from __future__ import annotations

import base64
import datetime as dt
import struct
from collections.abc import Iterator
from typing import Any

from purelb_sm.sandbox.apiserver.builtin import definitions
from purelb_sm.sandbox.apiserver.objects import JSON

MAGIC = b"k8s\x00"
CONTENT_TYPE = "application/vnd.kubernetes.protobuf"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class ProtobufError(ValueError):
    """A body that is no message of a known kind."""


def decode(body: bytes) -> JSON:
    """The object in an enveloped body, with its apiVersion and kind; raises ProtobufError."""
    if not body.startswith(MAGIC):
        raise ProtobufError("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
    try:
        envelope = {number: value for number, _, value in _wire(body[len(MAGIC) :])}
        meta = {number: value.decode() for number, _, value in _wire(envelope.get(1, b""))}
        api_version, kind = meta.get(1, ""), meta.get(2, "")
        obj = _message(_type_of(api_version, kind), envelope.get(2, b""))
    except (IndexError, struct.error, UnicodeDecodeError, AttributeError) as error:
        raise ProtobufError(f"the protobuf message cannot be read: {error}") from error
    return {"apiVersion": api_version, "kind": kind, **obj}


def _type_of(api_version: str, kind: str) -> str:
    group, _, version = api_version.rpartition("/")
    package = group.split(".")[0] if group else "core"
    for name in (f"{package}/{version}.{kind}", f"meta/v1.{kind}"):
        if name in definitions():
            return name
    raise ProtobufError(f"no kind {kind!r} is known in version {api_version!r} as protobuf")


def _wire(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """(number, wire type, value) of each field of a message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        value: Any
        if wire == _VARINT:
            value, at = _varint(data, at)
        elif wire == _BYTES:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise IndexError("a field is longer than its message")
            value, at = data[at : at + length], at + length
        elif wire == _FIXED64:
            value, at = struct.unpack_from("<d", data, at)[0], at + 8
        elif wire == _FIXED32:
            value, at = struct.unpack_from("<f", data, at)[0], at + 4
        else:
            raise IndexError(f"wire type {wire}")
        yield number, wire, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _message(name: str, data: bytes) -> JSON:
    rows = {number: (key, kind, flags) for key, number, kind, flags, *_ in definitions()[name]}
    made: JSON = {}
    for number, _, value in _wire(data):
        if number not in rows:
            continue
        key, kind, flags = rows[number]
        if "i" in flags:
            made.update(_message(kind, value))
        elif kind.startswith("[]"):
            made.setdefault(key, []).append(_value(kind[2:], value))
        elif kind.startswith("{}"):
            entry = {n: v for n, _, v in _wire(value)}
            made.setdefault(key, {})[entry.get(1, b"").decode()] = _value(kind[2:], entry.get(2, b""))
        else:
            made[key] = _value(kind, value)
    return made


def _value(kind: str, value: Any) -> Any:
    match kind:
        case "string":
            return value.decode()
        case "bool":
            return bool(value)
        case "int":
            return value - (1 << 64) if value >= 1 << 63 else value
        case "float":
            return value
        case "bytes":
            return base64.b64encode(value).decode()
        case "time" | "microtime":
            return _time(value, micro=kind == "microtime")
    if kind not in ("intstr", "quantity", "raw", "duration"):
        return _message(kind, value)
    parts = {number: part for number, _, part in _wire(value)}
    if kind == "intstr":
        return parts.get(3, b"").decode() if parts.get(1) else _value("int", parts.get(2, 0))
    if kind == "quantity":
        return parts.get(1, b"").decode()
    if kind == "duration":
        return f"{parts.get(1, 0) / 1e9:g}s"
    return parts.get(1, b"").decode()


def _time(value: bytes, *, micro: bool) -> str | None:
    """Seconds and nanoseconds since 1970; an empty message is no time at all."""
    parts = {number: part for number, _, part in _wire(value)}
    if not parts:
        return None
    moment = dt.datetime.fromtimestamp(_value("int", parts.get(1, 0)), dt.UTC)
    if not micro:
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return moment.replace(microsecond=parts.get(2, 0) // 1000).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
