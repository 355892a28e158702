"""How many addresses of a group the Services of one namespace may hold (spec A30), and how many they do.

Owned by the leader beside the free space: learned from the book for the namespaces that ask, in the transaction that
gives, and kept right by `follow`, which takes the actions of every plan. Nobody else changes the book under a leader's
term, so what is counted here is what the transaction finds.

An address counts once for a namespace, however many of its Services share it; one that is being released, or is in
quarantine, is held by nobody. Costs: a lookup for every address that comes or goes, and nothing for groups without a
limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, NamedTuple, Protocol

from purelb_sm.domain.addresses import Address
from purelb_sm.domain.book import Action, Hold, Join, Leave, Reclaim
from purelb_sm.domain.groups import MAX_MULTI_POOLS
from purelb_sm.domain.namespaces import Ruled
from purelb_sm.errors import Reason, Refused

TRIED_AT_LEAST: Final = 64


class Room(NamedTuple):
    """What a Service refused for its quota waits for: that its namespace may hold so many more addresses of the group.

    Of what is cleared, `addresses` is how many more it may hold then.
    """

    namespace: str
    group: str
    addresses: int = 1


class HeldIn(NamedTuple):
    """An address that Services of a namespace hold: so many of them."""

    namespace: str
    group: str
    address: Address
    members: int


class Placed(Protocol):
    """What of a choice, or of what is booked, is needed here."""

    @property
    def address(self) -> Address: ...

    @property
    def group(self) -> str: ...


class Quota:
    """`limits` by group; a group without one is not in it."""

    def __init__(self, limits: Mapping[str, int] | None = None) -> None:
        self.limits = dict(limits or {})
        self._learned: set[str] = set()
        self._members: dict[str, dict[Address, HeldIn]] = {}
        self._held: Counter[tuple[str, str]] = Counter()

    @classmethod
    def of(cls, groups: Mapping[str, Ruled]) -> Quota:
        limits = {name: group.rule.max_per_namespace for name, group in groups.items()}
        return cls({name: limit for name, limit in limits.items() if limit is not None})

    def held(self, namespace: str, group: str) -> int:
        """How many addresses of the group the namespace has; right once it is learned."""
        return self._held[(namespace, group)]

    def unknown(self, namespaces: Iterable[str]) -> list[str]:
        """Of these namespaces, those to be learned before anything is given; none where nothing is limited."""
        return sorted(set(namespaces) - self._learned) if self.limits else []

    def learn(self, namespaces: Collection[str], booked: Iterable[HeldIn]) -> None:
        """`booked` is all that these namespaces hold of the groups with a limit."""
        self._learned.update(namespaces)
        for one in booked:
            if one.group in self.limits:
                self._members.setdefault(one.namespace, {})[one.address] = one
                self._held[(one.namespace, one.group)] += 1

    def check(self, namespace: str, leaving: Iterable[Placed], coming: Iterable[Placed]) -> None:
        """Raises Refused where what comes to the namespace, less what leaves it, is more than a group allows.

        What is over a limit that was lowered stays: only more is refused.
        """
        if not self.limits:
            return
        has = self._members.get(namespace, {})
        more = Counter(one.group for one in coming if one.group in self.limits and one.address not in has)
        less = Counter(
            has[one.address].group for one in leaving if one.address in has and has[one.address].members == 1
        )
        for group, number in sorted(more.items()):
            net = number - less[group]
            if net > 0 and self.held(namespace, group) + net > self.limits[group]:
                text = f"ServiceGroup {group} gives the Services of namespace {namespace} at most {self.limits[group]}"
                needs = f"; {number} at once would be more" if number > 1 else ""
                why = f"{text} address{'es' if self.limits[group] > 1 else ''}{needs}"
                raise Refused(Reason.QUOTA_EXCEEDED, why, (Room(namespace, group, net),))

    def follow(self, actions: Iterable[Action]) -> list[Room]:
        """Takes what a plan does. Answers with where there is room again."""
        room: list[Room] = []
        for action in actions if self.limits else ():
            match action:
                case Hold() | Reclaim() | Join():
                    self._come(action)
                case Leave():
                    room += self._leave(action)
        return room

    def _come(self, action: Hold | Reclaim | Join) -> None:
        namespace = action.key.namespace
        has = self._members.setdefault(namespace, {})
        before = has.get(action.address)
        if before is not None:
            has[action.address] = before._replace(members=before.members + 1)
        elif action.group in self.limits:
            has[action.address] = HeldIn(namespace, action.group, action.address, 1)
            self._held[(namespace, action.group)] += 1

    def _leave(self, action: Leave) -> list[Room]:
        namespace = action.key.namespace
        has = self._members.get(namespace, {})
        before = has.get(action.address)
        if before is None:
            return []
        if before.members > 1:
            has[action.address] = before._replace(members=before.members - 1)
            return []
        del has[action.address]
        self._held[(namespace, before.group)] -= 1
        free = self.limits[before.group] - self._held[(namespace, before.group)]
        return [Room(namespace, before.group, free)] if free > 0 else []


def may_be_served(cleared: Iterable[Room]) -> Iterator[tuple[Room, int]]:
    """What may be waited for that these clear, each with how many of those who wait for it to try.

    Not all of them: a namespace may have thousands that wait for its quota, and one address less is for one of them. A
    few more than may be served are tried, as some may meet another refusal by now.
    """
    free: dict[tuple[str, str], list[int]] = {}
    for room in cleared:
        free.setdefault((room.namespace, room.group), []).append(room.addresses)
    for (namespace, group), found in free.items():
        for addresses in range(1, min(max(found), MAX_MULTI_POOLS) + 1):
            yield Room(namespace, group, addresses), TRIED_AT_LEAST + 2 * len(found)
