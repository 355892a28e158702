"""Which group may serve which namespace: the rules that groups state, and what they come to together.

Meaning as in PureLB v0.17 (`spec.namespaces`, `enforceNamespaces`, `namespaceDefault`). A list of namespaces is by
itself only a default for the Services of those namespaces. One group that enforces it confines each namespace it
lists, and that in both directions: the namespace may use none but the groups that list it, and each of those groups
serves none but the namespaces that it lists. So the boundary is the namespace's, and not one group's.

Nothing is decided by order: of several groups that could be the default of a namespace none is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from purelb_sm.domain import names
from purelb_sm.domain.fields import read_flag, read_list
from purelb_sm.errors import InvalidGroup, Reason, Refused

MAX_NAMESPACES: Final = 1024
MAX_QUOTA: Final = 2**31 - 1
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class NamespaceRule:
    """What one group says of namespaces. No `namespaces`: it serves all of them.

    `max_per_namespace` is how many addresses of the group the Services of one namespace may hold; None: any number.
    """

    namespaces: frozenset[str] = frozenset()
    enforced: bool = False
    default: bool = False
    max_per_namespace: int | None = None

    def serves(self, namespace: str) -> bool:
        return not self.namespaces or namespace in self.namespaces


FOR_ALL: Final = NamespaceRule()


def parse_namespace_rule(spec: Mapping[str, Any]) -> NamespaceRule:
    """Raises InvalidGroup, naming field and value."""
    listed = frozenset(_namespaces(spec.get("namespaces")))
    enforced = read_flag("spec.enforceNamespaces", spec.get("enforceNamespaces"))
    default = read_flag("spec.namespaceDefault", spec.get("namespaceDefault"))
    if enforced and not listed:
        raise InvalidGroup("spec.enforceNamespaces", True, "needs namespaces: without them it would enforce nothing")
    if default and not listed:
        raise InvalidGroup("spec.namespaceDefault", True, "needs namespaces: without them it is the default of none")
    return NamespaceRule(listed, enforced, default, _quota(spec.get("maxPerNamespace")))


def _namespaces(value: object) -> list[str]:
    items = read_list("spec.namespaces", value)
    if len(items) > MAX_NAMESPACES:
        raise InvalidGroup("spec.namespaces", len(items), f"has more than {MAX_NAMESPACES} entries")
    for index, item in enumerate(items):
        if not isinstance(item, str) or not _LABEL.fullmatch(item):
            raise InvalidGroup(f"spec.namespaces[{index}]", item, "is not the name of a namespace")
    return items


def _quota(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_QUOTA:
        raise InvalidGroup("spec.maxPerNamespace", value, "must be a whole number from 1")
    return value


class Ruled(Protocol):
    """What of a Group is needed here."""

    @property
    def rule(self) -> NamespaceRule: ...


@dataclass(frozen=True, slots=True)
class _Binding:
    """A namespace that at least one group lists. `default` is None where none of `serving` is it, and `why` says so."""

    serving: tuple[str, ...]
    default: str | None
    confined: bool
    why: str


class Bindings:
    """What the accepted groups say of namespaces, all together. Made once for a set of groups, never changed."""

    def __init__(self, groups: Mapping[str, Ruled]) -> None:
        self._rules = {name: group.rule for name, group in groups.items()}
        serving: dict[str, list[str]] = {}
        for name in sorted(groups):
            for namespace in groups[name].rule.namespaces:
                serving.setdefault(namespace, []).append(name)
        self._bound = {namespace: self._bind(namespace, found) for namespace, found in serving.items()}
        self._fenced = frozenset(name for b in self._bound.values() if b.confined for name in b.serving)

    def default_group(self, namespace: str) -> str:
        """The name of the group for Services that ask for none. Raises Refused where a confined namespace has none."""
        bound = self._bound.get(namespace)
        if bound is None:
            return names.DEFAULT_GROUP
        if bound.default is None and bound.confined:
            raise Refused(Reason.AMBIGUOUS_SERVICE_GROUP, bound.why)
        return bound.default or names.DEFAULT_GROUP

    def ambiguity(self, namespace: str) -> str:
        """Why none of the groups that list the namespace is its default; empty where one is, or none lists it."""
        bound = self._bound.get(namespace)
        return bound.why if bound is not None else ""

    def barrier(self, namespace: str, group: str) -> str:
        """Why this group may not serve this namespace, as the end of a sentence; empty where it may."""
        bound = self._bound.get(namespace)
        if bound is not None and bound.confined and group not in bound.serving:
            return f"namespace {namespace} may only use ServiceGroup {_some(bound.serving, ' or ')}"
        if group in self._fenced and not self._rules[group].serves(namespace):
            return f"it does not serve namespace {namespace}"
        return ""

    def conflicts(self) -> dict[str, str]:
        """For each group that shares a namespace with others and leaves open which is the default: what is amiss."""
        found: dict[str, list[str]] = {}
        for namespace in sorted(self._bound):
            bound = self._bound[namespace]
            for name in bound.serving if bound.why else ():
                found.setdefault(name, []).append(bound.why)
        return {
            name: whys[0] + (f" (so it is with {len(whys) - 1} more namespaces)" if whys[1:] else "")
            for name, whys in found.items()
        }

    def _bind(self, namespace: str, serving: list[str]) -> _Binding:
        confined = any(self._rules[name].enforced for name in serving)
        marked = serving if len(serving) == 1 else [name for name in serving if self._rules[name].default]
        if len(marked) == 1:
            return _Binding(tuple(serving), marked[0], confined, "")
        who, what = (marked, "all say") if marked else (serving, "none of them says")
        why = f"namespace {namespace} is served by ServiceGroups {_some(who)}, and {what} namespaceDefault"
        return _Binding(tuple(serving), None, confined, why)


UNBOUND: Final = Bindings({})
"""No group says anything of namespaces."""


def _some(found: tuple[str, ...] | list[str], joint: str = ", ") -> str:
    shown = joint.join(found[:_SHOWN])
    return shown if len(found) <= _SHOWN else f"{shown} and {len(found) - _SHOWN} more"
