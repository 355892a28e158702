"""What the agent sees of the cluster, turned into the domain's values: Services into claims, groups, configuration.

An object that cannot be read concerns nobody but itself. Nothing here decides; `changed` is told what to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import structlog

from purelb_sm.domain import names
from purelb_sm.domain.agent_config import AgentConfig, choose_config
from purelb_sm.domain.announce import Groups
from purelb_sm.domain.book import EventNote
from purelb_sm.domain.groups import Group, Pool, accept_groups, parse_group
from purelb_sm.domain.views import LeaseView, NodeView, ObjectView, ServiceKey, ServiceView
from purelb_sm.errors import InvalidGroup
from purelb_sm.kube.client import KubeClient
from purelb_sm.kube.objects import LB_NODE_AGENT, LEASE, NODE, SERVICE, SERVICE_GROUP, Data, Kind, decode_service
from purelb_sm.kube.reflector import Reflector

log = structlog.get_logger(__name__)

LEASES_IDLE_S: Final = 6.0
"""Our own Lease changes every 2 s: a watch of Leases that is silent for longer is broken."""


_READ: Final = (
    names.ALLOCATED_BY,
    names.ALLOCATED_FROM,
    names.ANNOUNCING_V4,
    names.ANNOUNCING_V6,
    names.NODE_AFFINITY,
)
_SHARED_MAX: Final = 1024
_shared: dict[tuple[str | None, ...], dict[str, str]] = {}


def slim(view: ServiceView) -> ServiceView:
    """Without what no announcement depends on: an agent's cache is on every node, and the node is for others."""
    return replace(
        view,
        ports=(),
        conditions=(),
        ip_families=(),
        ip_family_policy=None,
        cluster_ip="",
        created_at=None,
        annotations=_slim_annotations(view.annotations),
    )


def _slim_annotations(annotations: dict[str, str]) -> dict[str, str]:
    """Those that are read here. Thousands of Services have the same, and then one dictionary, which nobody changes."""
    values = tuple(annotations.get(name) for name in _READ)
    if values not in _shared:
        if len(_shared) >= _SHARED_MAX:
            _shared.clear()
        _shared[values] = {name: value for name, value in zip(_READ, values, strict=True) if value is not None}
    return _shared[values]


def _decode(data: Data) -> ServiceView:
    return slim(decode_service(data))


SLIM_SERVICE: Final[Kind[ServiceKey, ServiceView]] = replace(SERVICE, decode=_decode)


@dataclass(frozen=True, slots=True)
class Watches:
    """The reflectors of an agent."""

    services: Reflector[ServiceKey, ServiceView]
    groups: Reflector[tuple[str, str], ObjectView]
    configs: Reflector[tuple[str, str], ObjectView]
    leases: Reflector[tuple[str, str], LeaseView]
    node: Reflector[str, NodeView]

    @classmethod
    def of(cls, client: KubeClient, node: str, namespace: str, clock: Callable[[], float]) -> Watches:
        return cls(
            services=Reflector(
                client,
                SLIM_SERVICE,
                field_selector="spec.type=LoadBalancer",
                keep=lambda view: view.type == "LoadBalancer",
                clock=clock,
            ),
            groups=Reflector(client, SERVICE_GROUP, namespace=namespace, clock=clock),
            configs=Reflector(client, LB_NODE_AGENT, namespace=namespace, clock=clock),
            leases=Reflector(client, LEASE, namespace=namespace, idle_s=LEASES_IDLE_S, clock=clock),
            node=Reflector(
                client,
                NODE,
                field_selector=f"metadata.name={node}",
                keep=lambda view: view.name == node,
                clock=clock,
            ),
        )

    def all(self) -> tuple[Reflector, ...]:  # type: ignore[type-arg]  # of whatever kinds
        return (self.services, self.groups, self.configs, self.leases, self.node)

    @property
    def synced(self) -> bool:
        """Whether each has seen a whole list: an empty cache must not pass for an empty cluster."""
        return all(reflector.synced.is_set() for reflector in self.all())


def ready(view: ObjectView) -> bool | None:
    """Whether the allocator uses the ServiceGroup as it is written now; None where it has not said so."""
    status = view.status if isinstance(view.status, Mapping) else {}
    conditions = status.get("conditions")
    if status.get("observedGeneration") != view.generation or not isinstance(conditions, list):
        return None
    found = [c.get("status") for c in conditions if isinstance(c, Mapping) and c.get("type") == "Ready"]
    return found[0] == "True" if found else None


class GroupReader:
    """ServiceGroups as they are accepted, with a memory: one that has become unreadable is used as it last was.

    Its Services still live on it, and a slip of the pen must not silence them. What was never readable is unusable.

    Of groups that overlap it uses the one that the allocator says it uses: which that is depends on what was there
    before, and an agent that was started later does not remember that.
    """

    def __init__(self) -> None:
        self._good: dict[str, Group] = {}
        self._accepted: dict[str, tuple[Pool, ...]] = {}
        self._told: dict[str, str] = {}

    def read(self, views: Collection[ObjectView]) -> Groups:
        good: dict[str, Group] = {}
        problems: dict[str, str] = {}
        for view in views:
            try:
                good[view.name] = parse_group(view)
            except InvalidGroup as error:
                problems[view.name] = str(error)
            except Exception:
                # A mistake of ours must not cost the other groups, nor this node all that it announces.
                log.exception("group_not_understood", group=view.name)
                problems[view.name] = "cannot be read"
            if view.name in problems and view.name in self._good:
                good[view.name] = self._good[view.name]
        accepted, refused = accept_groups(good.values(), self._accepted_before(views, good))
        problems |= {name: str(error) for name, error in refused.items()}
        self._good = good
        self._accepted = {name: group.pools for name, group in accepted.items()}
        self._tell(problems)
        return Groups(accepted.values(), unusable=problems.keys() - accepted.keys())

    def _accepted_before(self, views: Iterable[ObjectView], good: Mapping[str, Group]) -> dict[str, tuple[Pool, ...]]:
        """What we accepted, but for the groups of which the allocator has said whether it does."""
        before = dict(self._accepted)
        for view in views:
            said = ready(view)
            if said is False:
                before.pop(view.name, None)
            elif said and view.name in good:
                before[view.name] = good[view.name].pools
        return before

    def _tell(self, problems: dict[str, str]) -> None:
        for name, why in problems.items():
            if self._told.get(name) != why:
                log.warning("service_group_not_usable", group=name, why=why)
        self._told = problems


class ConfigReader:
    """The LBNodeAgent of this node. It has no such memory: an agent that starts later could not have it, and one node
    would hold what another has given up. `tell` is told once of each object that cannot be read, or is not used."""

    def __init__(self, node: str, tell: Callable[[ObjectView, EventNote], None]) -> None:
        self._node = node
        self._tell = tell
        self._told: set[tuple[str, str]] = set()

    def read(self, views: Iterable[ObjectView], node: NodeView | None) -> AgentConfig | None:
        """None: the node announces nothing."""
        choice = choose_config(views, node.labels if node else {})
        notes = [(view, EventNote("Warning", "ParseFailed", str(error))) for view, error in choice.problems]
        unused = f"not used on node {self._node}: LBNodeAgent {choice.used} goes before it"
        notes += [(view, EventNote("Warning", "ConfigurationWarning", unused)) for view in choice.unused]
        for view, note in notes:
            if (view.name, note.message) not in self._told:
                log.warning("lbnodeagent_not_usable", lbnodeagent=view.name, why=note.message)
                self._tell(view, note)
        self._told = {(view.name, note.message) for view, note in notes}
        return choice.config
