"""An engine on a real book, and a cluster that is a dict: users change Services, `settle` plays allocator and server.

The watch is never late here, and every write is taken: for what can go wrong in between there is the search over
interleavings. Nodes hold nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from purelb_sm.allocator.engine import Engine
from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address
from purelb_sm.domain.book import EventNote, Plan, Publication
from purelb_sm.domain.publication import current_condition
from purelb_sm.domain.sharing import Shared
from purelb_sm.domain.views import Ingress, Port, ServiceKey, ServiceView
from purelb_sm.store import Book, schema
from purelb_sm.store.audit import Audit, Filter, HistoryRow
from tests.support.domain import NOW, group_view, service


def ports(*texts: str) -> tuple[Port, ...]:
    """`80`, `53/UDP`."""
    return tuple(Port(text.partition("/")[2] or "TCP", int(text.partition("/")[0])) for text in texts)


class Office:
    """Names are those of Services in the namespace `test`, or `namespace/name`."""

    def __init__(self, url: str, **groups: Any) -> None:
        self.url, self.now = url, NOW
        self.groups = [group_view(name, spec) for name, spec in groups.items()]
        self.services: dict[ServiceKey, ServiceView] = {}
        self.events: list[tuple[str, EventNote]] = []
        self._versions, self._uids = itertools.count(100), itertools.count(1)
        self.book: Book | None = None
        self.lead()

    def close(self) -> None:
        if self.book is not None:
            self.book.close()

    def lead(self) -> None:
        """Another allocator leads, or the same after a crash."""
        self.close()
        self.book = Book.open(self.url, actor="office")
        self.engine = Engine(
            self.book,
            self.book.raise_term(self.now),
            clock=lambda: self.now,
            load_balancer_class=names.LOAD_BALANCER_CLASS,
            default_class=True,
            settle_s=0.0,
        )
        self.engine.set_groups(self.groups)

    def regroup(self, **groups: Any) -> None:
        self.groups = [group_view(name, spec) for name, spec in groups.items()]
        self.engine.set_groups(self.groups)

    # Users.

    def create(self, name: str, key: str | None = None, *on: str, **changes: Any) -> None:
        which = key_of(name)
        annotations = changes.pop("annotations", {}) | ({} if key is None else {names.ALLOW_SHARED_IP: key})
        self.services[which] = service(
            key=which,
            uid=f"uid-{which.name}-{next(self._uids)}",
            resource_version=str(next(self._versions)),
            ports=ports(*on) if on else ports("80"),
            annotations=annotations,
            **changes,
        )

    def edit(self, name: str, **changes: Any) -> None:
        """Annotations with value None are removed, and others are left alone."""
        which = key_of(name)
        view = self.services[which]
        annotations = {**view.annotations, **changes.pop("annotations", {})}
        annotations = {k: v for k, v in annotations.items() if v is not None}
        version = str(next(self._versions))
        self.services[which] = replace(view, resource_version=version, annotations=annotations, **changes)

    def rekey(self, name: str, key: str | None) -> None:
        self.edit(name, annotations={names.ALLOW_SHARED_IP: key})

    def delete(self, *names_: str) -> None:
        for name in names_:
            del self.services[key_of(name)]

    # The allocator and the API server.

    def plan(self, *names_: str) -> list[Plan]:
        """One batch, in this order; the writes are taken."""
        made = self.engine.plan_batch({key: self.services.get(key) for key in map(key_of, names_)})
        assert len(made) == len(names_), "one was left out of its batch"
        for each in made:
            publication = each.publication
            if each.policy is not None:
                assert self.services[each.key].resource_version == each.policy.resource_version
                self.events.append((each.key.name, each.policy.note))
                self.edit(str(each.key), external_traffic_policy="Cluster")
            if publication is not None and each.policy is not None:
                publication = replace(publication, resource_version=self.services[each.key].resource_version)
            if publication is not None:
                self._take(publication)
            self.events += [(each.key.name, note) for note in each.events]
        return made

    def settle(self, *names_: str) -> None:
        """Plans these, and what comes of it, until nothing does: `again`, and who waited for what is cleared."""
        waiting: dict[str, set[object]] = {}
        todo = list(names_)
        for _ in range(20):
            if not todo:
                return
            made = self.plan(*todo)
            todo = []
            for each in made:
                waiting[str(each.key)] = set(each.obstacles)
                if each.again:
                    todo.append(str(each.key))
            cleared = {obstacle for each in made for obstacle in each.cleared}
            todo += [name for name, obstacles in waiting.items() if obstacles & cleared and name not in todo]
        raise AssertionError(f"no end of it: {todo}")

    def release(self, later_s: float = 0.0) -> None:
        self.now += timedelta(seconds=later_s)

        def shows(key: ServiceKey, address: Address) -> bool:
            view = self.services.get(key)
            return view is not None and str(address) in {entry.ip for entry in view.ingress}

        self.engine.release_pass(shows, frozenset())

    def _take(self, publication: Publication) -> None:
        view = self.services[publication.key]
        assert view.resource_version == publication.resource_version
        self.services[publication.key] = taken(view, publication, str(next(self._versions)))

    # What is to be seen.

    def shown(self, name: str) -> list[str]:
        return [entry.ip for entry in self.services[key_of(name)].ingress]

    def refusal(self, name: str) -> str:
        """The reason in the condition, empty where the Service was served."""
        condition = current_condition(self.services[key_of(name)])
        assert condition is not None, f"{name} was told nothing"
        return "" if condition.status == "True" else condition.reason

    def message(self, name: str) -> str:
        condition = current_condition(self.services[key_of(name)])
        return "" if condition is None else condition.message

    def history(self, **wanted: Any) -> list[HistoryRow]:
        audit = Audit.open(self.url)
        try:
            audit.verify()
            return list(audit.history(Filter(**wanted)))
        finally:
            audit.close()

    def who_has(self, address: Address) -> list[str]:
        audit = Audit.open(self.url)
        try:
            return [h.service.name for h in audit.who_had(address, self.now) if h.service is not None]
        finally:
            audit.close()

    def index_is_what_the_book_says(self) -> None:
        world = self.engine._world
        if world is not None and self.book is not None:
            with self.book.transaction(self.engine.term, self.now) as unit:
                assert world.shared == Shared(unit.shared())


def key_of(name: str) -> ServiceKey:
    namespace, _, rest = name.rpartition("/")
    return ServiceKey(namespace or "test", rest)


def taken(view: ServiceView, publication: Publication, version: str) -> ServiceView:
    """The Service after the API server took the publication."""
    kept = {k: v for k, v in view.annotations.items() if k not in publication.annotations}
    ours = {k: v for k, v in publication.annotations.items() if v is not None}
    ingress = view.ingress
    if publication.ingress is not None:
        ingress = tuple(Ingress(str(a), "", "VIP") for a in publication.ingress)
    conditions = view.conditions if publication.conditions is None else publication.conditions
    return replace(view, annotations=kept | ours, ingress=ingress, conditions=conditions, resource_version=version)


@contextmanager
def an_office(tmp_path: Path, **groups: Any) -> Iterator[Office]:
    url = f"sqlite:///{tmp_path / 'book.db'}"
    schema.upgrade(url)
    office = Office(url, **groups)
    try:
        yield office
        office.index_is_what_the_book_says()
    finally:
        office.close()
