"""LBNodeAgent objects: how a node announces. Read into AgentConfig, or refused by name of field and value.

Reads what PureLB users have: `v2` (localInterface, interfaces, dummyInterface) and `v1` (localint, extlbint), both with
garpConfig, addressConfig and nodeSelector; and conflictProbe, which is ours. Without an object the defaults hold. Which
object is a node's is decided by its labels, and alike on every node and after every restart: what was read before an
edit decides nothing.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from purelb_sm.domain.durations import parse_duration_s
from purelb_sm.domain.names import KUBE_LB0
from purelb_sm.domain.views import ObjectView
from purelb_sm.errors import InvalidAgentConfig

DEFAULT_ROUTE: Final = "default"
"""As `localInterface`: the interface of the default route with the lowest metric."""

MIN_LIFETIME_S: Final = 60
MAX_LIFETIME_S: Final = 2**31
MIN_PROBE_INTERVAL_S: Final = 0.02
MAX_PROBE_INTERVAL_S: Final = 2.0
"""PROBE_MAX of RFC 5227."""
_INTERFACE = re.compile(r"[^\s/]{1,15}")


@dataclass(frozen=True, slots=True)
class GarpConfig:
    """When gratuitous ARP and unsolicited NA go out after an address was added. `verify`: only while it is ours."""

    enabled: bool = True
    initial_delay_s: float = 0.1
    count: int = 3
    interval_s: float = 0.5
    verify: bool = True


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """How a link is asked, before an address is first announced there, whether a foreign host uses it.

    `enabled` is about IPv4 only: what it is for IPv6 is said by a ServiceGroup's `skipIPv6DAD`. An address waits for
    `count` times `interval_s`. RFC 5227 asks three times in a matter of seconds, and leaves shorter waits to links that
    answer faster (section 2.2): a host on an Ethernet answers in a millisecond, and after three tenths of a second has
    been asked three times. A lost frame or a busy host has two more chances.
    """

    enabled: bool = False
    count: int = 3
    interval_s: float = 0.1


@dataclass(frozen=True, slots=True)
class AddressConfig:
    """How addresses are put on one kind of interface. `lifetime_s` None: permanent. `preferred_s`: after so long the
    kernel no longer picks the address as a source of its own; None: as long as it is valid."""

    lifetime_s: int | None
    preferred_s: int | None
    noprefixroute: bool


LOCAL_DEFAULT: Final = AddressConfig(lifetime_s=300, preferred_s=None, noprefixroute=True)
REMOTE_DEFAULT: Final = AddressConfig(lifetime_s=None, preferred_s=None, noprefixroute=False)


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What one LBNodeAgent asks of its nodes. `source` is its name, empty for the defaults."""

    source: str = ""
    local_interface: str = DEFAULT_ROUTE
    interfaces: tuple[str, ...] = ()
    dummy_interface: str = KUBE_LB0
    garp: GarpConfig = GarpConfig()
    local: AddressConfig = LOCAL_DEFAULT
    remote: AddressConfig = REMOTE_DEFAULT
    probe: ProbeConfig = ProbeConfig()

    def selects(self, interface: str) -> bool:
        """Whether local addresses may go on this interface, the one of the default route aside."""
        return interface != self.dummy_interface and (self._matches(interface) or interface in self.interfaces)

    def preference(self, interface: str) -> tuple[int, str]:
        """Sorts selected interfaces: by name those that the regular expression finds (the kernel's order may be another
        after the next boot), then those of `interfaces` as they are written there."""
        if self._matches(interface):
            return -1, interface
        return self.interfaces.index(interface), interface

    def _matches(self, interface: str) -> bool:
        """Anywhere in the name, as in PureLB: who means the whole name anchors the expression."""
        return not self.wants_default_route and re.search(self.local_interface, interface) is not None

    @property
    def wants_default_route(self) -> bool:
        return self.local_interface == DEFAULT_ROUTE


DEFAULT_CONFIG: Final = AgentConfig()


def parse_agent_config(view: ObjectView) -> AgentConfig:
    """Raises InvalidAgentConfig. `nodeSelector` is read by `parse_selector`."""
    local = _local(view)
    _no_guard(local)
    return AgentConfig(
        source=view.name,
        local_interface=_pattern(local, ("localInterface", "localint")),
        interfaces=tuple(_interface(f"spec.local.interfaces[{i}]", x) for i, x in _items(local, "interfaces")),
        dummy_interface=_dummy(local),
        garp=_garp(_child("spec.local", local, "garpConfig")),
        local=_addresses(local, "localInterface", LOCAL_DEFAULT),
        remote=_addresses(local, "dummyInterface", REMOTE_DEFAULT),
        probe=_probe(_child("spec.local", local, "conflictProbe")),
    )


@dataclass(frozen=True, slots=True)
class Requirement:
    """One line of a label selector (meta/v1 LabelSelectorRequirement)."""

    key: str
    operator: str
    values: frozenset[str]

    def holds(self, labels: Mapping[str, str]) -> bool:
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case _:
                return self.key not in labels


def parse_selector(view: ObjectView) -> tuple[Requirement, ...]:
    """`spec.nodeSelector`; empty: all nodes. Raises InvalidAgentConfig."""
    selector = _child("spec", _mapping("spec", view.spec), "nodeSelector")
    found = []
    for key, value in _child("spec.nodeSelector", selector, "matchLabels").items():
        found.append(
            Requirement(str(key), "In", frozenset((_text(f"spec.nodeSelector.matchLabels.{key}", value, True),)))
        )
    for index, item in _items(selector, "matchExpressions", "spec.nodeSelector"):
        found.append(_requirement(f"spec.nodeSelector.matchExpressions[{index}]", item))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which LBNodeAgent is a node's. `config` None: the node announces nothing. Either the one that is cannot be read,
    and the node must not guess; or there are some, and none is for this node.

    problems   the objects that cannot be read, that one or others that might have been it, each with why
    unused     the objects that select the node as `used` does, and come after it
    """

    config: AgentConfig | None
    problems: tuple[tuple[ObjectView, InvalidAgentConfig], ...] = ()
    used: str = ""
    unused: tuple[ObjectView, ...] = ()


def choose_config(views: Iterable[ObjectView], labels: Mapping[str, str]) -> Choice:
    """The LBNodeAgent of the node with these labels: one whose selector names it goes before one for all nodes, then
    the order of namespace and name; one without `spec.local` is passed over. None at all: the defaults. As PureLB's
    AgentsForNode (pkg/apis/purelb/v2/nodeselect.go)."""
    specific: list[ObjectView] = []
    for_all: list[ObjectView] = []
    problems: list[tuple[ObjectView, InvalidAgentConfig]] = []
    for_others = False
    for view in sorted(views, key=lambda v: (v.namespace, v.name)):
        try:
            selector = parse_selector(view)
        except InvalidAgentConfig as error:
            problems.append((view, error))
            continue
        if not isinstance(view.spec, Mapping) or view.spec.get("local") is None:
            continue
        if not selector:
            for_all.append(view)
        elif all(requirement.holds(labels) for requirement in selector):
            specific.append(view)
        else:
            for_others = True
    # That one for all comes after one that selects is what the two were written for.
    found = specific or for_all
    if not found:
        return Choice(None if for_others else DEFAULT_CONFIG, tuple(problems))
    mine, unused = found[0], tuple(found[1:])
    try:
        return Choice(parse_agent_config(mine), tuple(problems), mine.name, unused)
    except InvalidAgentConfig as error:
        return Choice(None, ((mine, error), *problems), mine.name, unused)


def _local(view: ObjectView) -> Mapping[str, Any]:
    return _child("spec", _mapping("spec", view.spec), "local")


def _pattern(local: Mapping[str, Any], names: tuple[str, ...]) -> str:
    name, value = _one_of(local, names)
    if value is None or value == "":
        return DEFAULT_ROUTE
    text = _text(f"spec.local.{name}", value)
    try:
        with warnings.catch_warnings():
            # PureLB's [[:digit:]] would be read here as a set of other characters, with no more than a warning.
            warnings.simplefilter("error")
            re.compile(text)
    except (re.error, Warning, RecursionError, OverflowError) as error:
        raise InvalidAgentConfig(f"spec.local.{name}", text, f"is not a regular expression: {error}") from None
    return text


def _no_guard(local: Mapping[str, Any]) -> None:
    """PureLB's filter in front of the addresses is not there. A node that cannot filter announces nothing, unless it
    was told to go on without (`failurePolicy: open`), as in PureLB."""
    guard = _child("spec.local", local, "addressGuard")
    if guard and guard.get("failurePolicy") != "open":
        raise InvalidAgentConfig(
            "spec.local.addressGuard", guard, "is not supported; failurePolicy: open announces without it"
        )


def _dummy(local: Mapping[str, Any]) -> str:
    name, value = _one_of(local, ("dummyInterface", "extlbint"))
    return KUBE_LB0 if value is None or value == "" else _interface(f"spec.local.{name}", value)


def _one_of(local: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    for name in names:
        if local.get(name) is not None:
            return name, local[name]
    return names[0], None


def _garp(item: Mapping[str, Any]) -> GarpConfig:
    """PureLB's v1 `sendgarp` is not read: its CRD writes `false` into every object, so `false` there is nobody's
    word, and without gratuitous ARP a failover takes as long as the neighbours' caches."""
    where, default = "spec.local.garpConfig", GarpConfig()
    count = item.get("count")
    return GarpConfig(
        enabled=_flag(f"{where}.enabled", item.get("enabled"), default.enabled),
        initial_delay_s=_duration(f"{where}.initialDelay", item.get("initialDelay"), default.initial_delay_s),
        count=default.count if count is None else _number(f"{where}.count", count, 1, 10),
        interval_s=_duration(f"{where}.interval", item.get("interval"), default.interval_s),
        verify=_flag(f"{where}.verifyBeforeSend", item.get("verifyBeforeSend"), default.verify),
    )


def _probe(item: Mapping[str, Any]) -> ProbeConfig:
    where, default = "spec.local.conflictProbe", ProbeConfig()
    count, interval = item.get("count"), item.get("interval")
    interval_s = _duration(f"{where}.interval", interval, default.interval_s)
    if not MIN_PROBE_INTERVAL_S <= interval_s <= MAX_PROBE_INTERVAL_S:
        raise InvalidAgentConfig(f"{where}.interval", interval, "must be from 20ms to 2s")
    return ProbeConfig(
        enabled=_flag(f"{where}.enabled", item.get("enabled"), default.enabled),
        count=default.count if count is None else _number(f"{where}.count", count, 1, 10),
        interval_s=interval_s,
    )


def _addresses(local: Mapping[str, Any], name: str, default: AddressConfig) -> AddressConfig:
    """0 means permanent, as in PureLB; a lifetime under a minute could run out between two renewals."""
    where = f"spec.local.addressConfig.{name}"
    item = _child("spec.local.addressConfig", _child("spec.local", local, "addressConfig"), name)
    lifetime = default.lifetime_s
    if item.get("validLifetime") is not None:
        lifetime = _number(f"{where}.validLifetime", item["validLifetime"], 0, MAX_LIFETIME_S) or None
    if lifetime is not None and lifetime < MIN_LIFETIME_S:
        raise InvalidAgentConfig(
            f"{where}.validLifetime", lifetime, f"must be 0 (permanent) or at least {MIN_LIFETIME_S}"
        )
    preferred = None
    if item.get("preferredLifetime") is not None:
        preferred = _number(f"{where}.preferredLifetime", item["preferredLifetime"], 0, MAX_LIFETIME_S) or None
    if preferred is not None and (lifetime is None or preferred > lifetime):
        raise InvalidAgentConfig(f"{where}.preferredLifetime", preferred, "must not be over validLifetime")
    return AddressConfig(
        lifetime, preferred, _flag(f"{where}.noPrefixRoute", item.get("noPrefixRoute"), default.noprefixroute)
    )


def _requirement(where: str, item: object) -> Requirement:
    body = _mapping(where, item)
    operator = _text(f"{where}.operator", body.get("operator"))
    values = frozenset(_text(f"{where}.values", v, True) for _, v in _items(body, "values", where))
    if operator not in ("In", "NotIn", "Exists", "DoesNotExist"):
        raise InvalidAgentConfig(f"{where}.operator", operator, "must be In, NotIn, Exists or DoesNotExist")
    if bool(values) != (operator in ("In", "NotIn")):
        raise InvalidAgentConfig(f"{where}.values", sorted(values), f"does not go with {operator}")
    return Requirement(_text(f"{where}.key", body.get("key")), operator, values)


def _interface(where: str, value: object) -> str:
    text = _text(where, value)
    if _INTERFACE.fullmatch(text) is None or text in (".", ".."):
        raise InvalidAgentConfig(where, text, "is not the name of an interface (1 to 15 characters)")
    return text


def _child(path: str, parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = parent.get(name)
    return {} if value is None else _mapping(f"{path}.{name}", value)


def _mapping(where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidAgentConfig(where, value, "must be an object")
    return value


def _items(parent: Mapping[str, Any], name: str, path: str = "spec.local") -> Iterable[tuple[int, Any]]:
    value = parent.get(name)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidAgentConfig(f"{path}.{name}", value, "must be a list")
    return enumerate(value)


def _text(where: str, value: object, may_be_empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or may_be_empty):
        raise InvalidAgentConfig(where, value, "must be a text")
    return value


def _number(where: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidAgentConfig(where, value, f"must be a whole number from {low} to {high}")
    return value


def _flag(where: str, value: object, default: bool) -> bool:
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidAgentConfig(where, value, "must be true or false")
    return value


def _duration(where: str, value: object, default: float) -> float:
    if value is None or value == "":
        return default
    try:
        return parse_duration_s(_text(where, value))
    except ValueError as error:
        raise InvalidAgentConfig(where, value, str(error)) from None
