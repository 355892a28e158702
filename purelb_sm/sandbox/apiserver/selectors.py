"""Label and field selectors, parsed once into predicates over objects.

Syntax: apimachinery's `labels.Parse` (equality and set-based requirements, comma is AND) and `fields.ParseSelector`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from purelb_sm.sandbox.apiserver.objects import JSON, dig
from purelb_sm.sandbox.apiserver.status import bad_request

Predicate = Callable[[JSON], bool]
_Requirement = Callable[[Mapping[str, str]], bool]

_TOKEN = re.compile(r"\s*(==|!=|=|!|\(|\)|,|<|>|[^\s=!(),<>]+)")
_SYMBOLS = {"==", "!=", "=", "!", "(", ")", ",", "<", ">"}


class _Tokens:
    """A cursor over the tokens of a label selector."""

    def __init__(self, text: str) -> None:
        self._tokens = _TOKEN.findall(text)
        self._at = 0

    def peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def next(self) -> str:
        token = self.peek()
        self._at += 1
        return token

    def identifier(self) -> str:
        token = self.next()
        if not token or token in _SYMBOLS:
            raise _unparsable(token, "identifier")
        return token


def _unparsable(found: str, expected: str) -> Exception:
    return bad_request(f"unable to parse requirement: found '{found}', expected: {expected}")


def parse_labels(text: str) -> _Requirement | None:
    """A predicate over labels, or None where everything matches; raises 400."""
    if not text.strip():
        return None
    tokens = _Tokens(text)
    requirements = [_requirement(tokens)]
    while tokens.peek():
        if tokens.next() != ",":
            raise _unparsable(tokens.peek(), "',' or end of string")
        requirements.append(_requirement(tokens))
    return lambda labels: all(r(labels) for r in requirements)


def _requirement(tokens: _Tokens) -> _Requirement:
    if tokens.peek() == "!":
        tokens.next()
        absent = tokens.identifier()
        return lambda labels: absent not in labels
    key = tokens.identifier()
    operator = tokens.peek()
    if operator in ("", ","):
        return lambda labels: key in labels
    tokens.next()
    if operator in ("=", "==", "!="):
        return _equality(tokens, key, operator)
    if operator in ("in", "notin"):
        values = _values(tokens)
        if operator == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if operator in ("<", ">"):
        return _numeric(key, operator, tokens.identifier())
    raise _unparsable(operator, "in, notin, =, ==, !=, gt, lt")


def _equality(tokens: _Tokens, key: str, operator: str) -> _Requirement:
    value = "" if tokens.peek() in ("", ",") else tokens.identifier()
    if operator == "!=":
        return lambda labels: labels.get(key) != value
    return lambda labels: labels.get(key) == value


def _values(tokens: _Tokens) -> frozenset[str]:
    if tokens.next() != "(":
        raise _unparsable(tokens.peek(), "'('")
    values = {""} if tokens.peek() in (",", ")") else {tokens.identifier()}
    while tokens.peek() == ",":
        tokens.next()
        values.add("" if tokens.peek() in (",", ")") else tokens.identifier())
    if tokens.next() != ")":
        raise _unparsable(tokens.peek(), "',' or ')'")
    return frozenset(values)


def _numeric(key: str, operator: str, bound: str) -> _Requirement:
    if not bound.lstrip("-").isdigit():
        raise bad_request(f"for 'Gt', 'Lt' operators, the value must be an integer: {bound!r}")

    def compare(labels: Mapping[str, str]) -> bool:
        value = labels.get(key, "")
        if not value.lstrip("-").isdigit():
            return False
        return int(value) > int(bound) if operator == ">" else int(value) < int(bound)

    return compare


def _field_terms(text: str) -> list[tuple[str, str, bool]]:
    """(path, value, equal?) of each term; a comma or backslash in a value is escaped by a backslash."""
    terms = []
    for term in re.split(r"(?<!\\),", text):
        if not term:
            continue
        match = re.fullmatch(r"([^=!]+)(!=|==|=)(.*)", term, re.DOTALL)
        if not match:
            raise bad_request(f"invalid selector: '{term}'; can't understand '{term}'")
        value = re.sub(r"\\([\\,=])", r"\1", match[3])
        terms.append((match[1].strip(), value, match[2] != "!="))
    return terms


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def parse_fields(text: str, supported: Mapping[str, str]) -> Predicate | None:
    """A predicate over objects; `supported` maps each selectable field to the default of an absent value."""
    terms = []
    for path, value, equal in _field_terms(text):
        if path not in supported:
            raise bad_request(f"field label not supported: {path}")
        terms.append((path.split("."), value, equal, supported[path]))
    if not terms:
        return None

    def matches(obj: JSON) -> bool:
        return all(((_as_text(dig(obj, path)) or unset) == value) is equal for path, value, equal, unset in terms)

    return matches


def named_by(text: str) -> str | None:
    """The one name that a field selector asks for, if it does: then there is no need to look at anything else."""
    names = [value for path, value, equal in _field_terms(text) if path == "metadata.name" and equal]
    return names[0] if names else None


def selector(labels: str, fields: str, supported: Mapping[str, str]) -> Predicate | None:
    """Both selectors of a request as one predicate, or None where everything matches; raises 400."""
    by_label = parse_labels(labels)
    by_field = parse_fields(fields, supported)
    if by_label is None:
        return by_field

    def both(obj: JSON) -> bool:
        found = obj["metadata"].get("labels") or {}
        return by_label(found) and (by_field is None or by_field(obj))

    return both
