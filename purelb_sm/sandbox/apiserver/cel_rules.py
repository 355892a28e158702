"""The `x-kubernetes-validations` of a CRD: compiled once, evaluated on every write.

A rule that this evaluator cannot run (an unknown function, a syntax it lacks) is never taken as passed in silence: it
is logged when the CRD is read, and every write that would have been checked gets a Warning.
Source: the CRD validation rules page, and KEP-2876.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cel
import structlog

from purelb_sm.sandbox.apiserver.objects import JSON
from purelb_sm.sandbox.apiserver.schema import Schema
from purelb_sm.sandbox.apiserver.status import DUPLICATE, FORBIDDEN, INVALID, REQUIRED, FieldError

log = structlog.get_logger(__name__)

_REASONS = {
    "FieldValueInvalid": INVALID,
    "FieldValueForbidden": FORBIDDEN,
    "FieldValueRequired": REQUIRED,
    "FieldValueDuplicate": DUPLICATE,
}
# Property names that are words of CEL are written between double underscores in rules.
_RESERVED = frozenset(
    (
        *("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if"),
        *("import", "let", "loop", "package", "namespace", "return", "var", "void", "while"),
    )
)


def _is(parse: Callable[[str], Any]) -> Callable[[Any], bool]:
    def check(text: Any) -> bool:
        try:
            parse(text)
        except ValueError:
            return False
        return True

    return check


def _strict_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if "%" in text or "::ffff:" in text.lower():
        raise ValueError("zones and IPv4-mapped addresses are not allowed")
    return ipaddress.ip_address(text)


def _strict_cidr(text: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    if "/" not in text:
        raise ValueError("no prefix length")
    _strict_ip(text.partition("/")[0])
    return ipaddress.ip_interface(text)


# Values of the IP and CIDR libraries, as maps that the evaluator can carry.
def _ip(value: Any) -> JSON:
    if isinstance(value, Mapping):
        return {"$ip": str(_strict_cidr(value["$cidr"]).ip)}
    return {"$ip": str(_strict_ip(value))}


def _cidr(text: str) -> JSON:
    _strict_cidr(text)
    return {"$cidr": text}


def _family(value: JSON) -> int:
    return ipaddress.ip_address(value["$ip"]).version


def _prefix_length(value: JSON) -> int:
    return int(_strict_cidr(value["$cidr"]).network.prefixlen)


def _contains_ip(value: JSON, ip: Any) -> bool:
    address = ipaddress.ip_address(ip["$ip"] if isinstance(ip, Mapping) else ip)
    return address in _strict_cidr(value["$cidr"]).network


def _contains_cidr(value: JSON, other: Any) -> bool:
    outer = _strict_cidr(value["$cidr"]).network
    inner = _strict_cidr(other["$cidr"] if isinstance(other, Mapping) else other).network
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _masked(value: JSON) -> JSON:
    return {"$cidr": str(_strict_cidr(value["$cidr"]).network)}


def _find(text: str, pattern: str) -> str:
    match = re.search(pattern, text)
    return match[0] if match else ""


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "isIP": _is(_strict_ip),
    "ip": _ip,
    "family": _family,
    "isCIDR": _is(_strict_cidr),
    "cidr": _cidr,
    "prefixLength": _prefix_length,
    "masked": _masked,
    "containsIP": _contains_ip,
    "containsCIDR": _contains_cidr,
    "split": lambda text, sep, *limit: text.split(sep, *(n - 1 for n in limit)),
    "join": lambda items, sep="": sep.join(items),
    "lowerAscii": lambda text: text.lower(),
    "upperAscii": lambda text: text.upper(),
    "trim": lambda text: text.strip(),
    "replace": lambda text, old, new, *count: text.replace(old, new, *count),
    "substring": lambda text, start, *end: text[start : end[0] if end else len(text)],
    "charAt": lambda text, at: text[at : at + 1],
    "indexOf": lambda text, part: text.find(part) if isinstance(text, str) else _index(text, part),
    "isSorted": lambda items: list(items) == sorted(items),
    "sum": lambda items: sum(items),
    "min": lambda items: min(items),
    "max": lambda items: max(items),
    "find": _find,
    "findAll": lambda text, pattern: re.findall(pattern, text),
}
# What the evaluator brings along, as its parser names it.
_BUILTIN = frozenset(
    (
        *("size", "contains", "startsWith", "endsWith", "matches", "string", "int", "uint", "double", "bool", "bytes"),
        *("type", "duration", "timestamp", "dyn", "getFullYear", "getMonth", "getDate", "getDayOfMonth"),
        *("getDayOfWeek", "getDayOfYear", "getHours", "getMinutes", "getSeconds", "getMilliseconds"),
    )
)


def _index(items: list[Any], wanted: Any) -> int:
    return items.index(wanted) if wanted in items else -1


@dataclass(frozen=True)
class Rule:
    """One compiled rule of one schema node; `program` is None where it cannot be evaluated, and `why` says so."""

    text: str
    message: str
    reason: str
    field_path: str
    program: cel.Program | None
    message_program: cel.Program | None
    transition: bool
    why: str = ""


def compile_rule(spec: JSON) -> Rule:
    text = str(spec.get("rule", "")).strip()
    program, why = _compiled(text)
    message_program = _compiled(spec["messageExpression"])[0] if spec.get("messageExpression") else None
    return Rule(
        text,
        spec.get("message") or f"failed rule: {text}",
        _REASONS.get(spec.get("reason", ""), INVALID),
        spec.get("fieldPath", ""),
        program,
        message_program,
        re.search(r"\boldSelf\b", text) is not None,
        why,
    )


def _compiled(text: str) -> tuple[cel.Program | None, str]:
    try:
        program = cel.compile(text)
    except ValueError as error:
        return None, f"cannot be parsed: {str(error).splitlines()[0]}"
    named = {f for f in program.functions() if f.isidentifier() and not f.startswith("_")}
    unknown = sorted(named - set(FUNCTIONS) - _BUILTIN)
    if unknown:
        return None, f"uses functions that are not available here: {', '.join(unknown)}"
    return program, ""


def evaluate(
    rules: tuple[Rule, ...], schema: Schema, value: Any, old: Any, path: str
) -> tuple[list[FieldError], list[str]]:
    """(what is wrong, which rules could not be run) at one node; `old` is None where there was no value before."""
    errors: list[FieldError] = []
    not_run: list[str] = []
    context: cel.Context | None = None
    for rule in rules:
        if rule.transition and old is None:
            continue
        if rule.program is None:
            not_run.append(f"{path or 'object'}: rule {rule.text!r} was not evaluated: it {rule.why}")
            continue
        context = context or _context(schema, value, old)
        problem = _run(rule, context, path, not_run)
        if problem is not None:
            errors.append(problem)
    return errors, not_run


def _run(rule: Rule, context: cel.Context, path: str, not_run: list[str]) -> FieldError | None:
    field = path + rule.field_path if path else rule.field_path.removeprefix(".")
    assert rule.program is not None
    try:
        if rule.program.execute(context) is True:
            return None
    except Exception as error:
        if "Undefined variable or function" in str(error):
            not_run.append(f"{field or 'object'}: rule {rule.text!r} was not evaluated: {error}")
            return None
        text = f"{error} evaluating rule: {rule.message}"
        return FieldError(field or "<nil>", INVALID, f"Invalid value: {text}")
    message = rule.message
    if rule.message_program is not None:
        try:
            message = str(rule.message_program.execute(context))
        except Exception as error:
            log.warning("message_expression_failed", rule=rule.text, error=str(error))
    prefix = {INVALID: "Invalid value: ", FORBIDDEN: "Forbidden: ", REQUIRED: "Required value: "}
    return FieldError(field or "<nil>", rule.reason, prefix.get(rule.reason, "") + message)


def _context(schema: Schema, value: Any, old: Any) -> cel.Context:
    context = cel.Context()
    context.add_variable("self", _typed(schema, value))
    if old is not None:
        context.add_variable("oldSelf", _typed(schema, old))
    for name, function in FUNCTIONS.items():
        context.add_function(name, function)
    return context


def _typed(schema: Schema, value: Any) -> Any:
    """The value as rules see it: numbers of type number are doubles, property names are escaped."""
    if isinstance(value, dict):
        if schema.fields:
            return {_escaped(k): _typed(schema.child(k), v) for k, v in value.items()}
        return {k: _typed(schema.child(k), v) for k, v in value.items()}
    if isinstance(value, list):
        return [_typed(schema.items or Schema(), v) for v in value]
    if schema.type == "number" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _escaped(name: str) -> str:
    if name in _RESERVED:
        return f"__{name}__"
    if name.isidentifier() and "__" not in name:
        return name
    name = name.replace("__", "__underscores__")
    return name.replace(".", "__dot__").replace("-", "__dash__").replace("/", "__slash__")
