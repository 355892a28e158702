"""What a Service asks for: Service view → Request, or Refused. Nothing past this point reads an annotation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address, Family, family_of, parse_service_address
from purelb_sm.domain.views import Port, ServiceKey, ServiceView
from purelb_sm.errors import InvalidAddress, Reason, Refused

PROTOCOLS = frozenset({"TCP", "UDP", "SCTP"})
MAX_SHARING_KEY = 253


class Whose(Enum):
    """Whether a Service is ours to serve."""

    OURS = "ours"
    NOT_A_LOAD_BALANCER = "type is not LoadBalancer"
    ANOTHER_CLASS = "loadBalancerClass names another"
    DELETING = "deleted"


@dataclass(frozen=True, slots=True)
class Request:
    """One Service's wish. `families` are those to serve, in order; with `require_all` it is all of them or none.

    `addresses` are particular addresses asked for; `group` the group asked for by name, None for the default;
    `multi_pool` whether it wants an address of each range, None: as the group says.
    `re_evaluate`: what it has is looked at anew too, as if it asked for the first time (A23).
    `sharing_key` that under which it shares its addresses, None where it does not.
    """

    key: ServiceKey
    uid: str
    families: tuple[Family, ...]
    require_all: bool
    group: str | None
    addresses: tuple[Address, ...]
    ports: tuple[Port, ...]
    re_evaluate: bool = False
    multi_pool: bool | None = None
    sharing_key: str | None = None


def whose(view: ServiceView, load_balancer_class: str, default_class: bool) -> Whose:
    """Spec A12: ours by class, or by having none; a Service that is being deleted asks for nothing."""
    if view.type != "LoadBalancer":
        return Whose.NOT_A_LOAD_BALANCER
    if view.load_balancer_class is None:
        if not default_class:
            return Whose.ANOTHER_CLASS
    elif view.load_balancer_class != load_balancer_class:
        return Whose.ANOTHER_CLASS
    return Whose.DELETING if view.deleting else Whose.OURS


def parse_request(view: ServiceView) -> Request:
    """Raises Refused: with WAITING_FOR_FAMILIES where the API server has not filled in families yet (A13)."""
    families, require_all = _families(view)
    return Request(
        key=view.key,
        uid=view.uid,
        families=families,
        require_all=require_all,
        group=_group_name(view),
        addresses=_addresses(view, families),
        ports=_ports(view),
        re_evaluate=wants_re_evaluation(view),
        multi_pool=_multi_pool(view),
        sharing_key=sharing_key(view),
    )


def wants_re_evaluation(view: ServiceView) -> bool:
    """Whether its owner asks to have it planned anew, once (A23)."""
    return view.annotation(names.RE_EVALUATE) == "true"


def sharing_key(view: ServiceView) -> str | None:
    """`purelb.io/allow-shared-ip` (A15). An empty one, as templates leave behind, shares nothing. Raises Refused."""
    text = view.annotation(names.ALLOW_SHARED_IP)
    key = "" if text is None else text.strip()
    if len(key) > MAX_SHARING_KEY:
        why = f"is longer than {MAX_SHARING_KEY} characters"
        raise Refused(Reason.INVALID_REQUEST, f"annotation {names.ALLOW_SHARED_IP} {why}")
    if not key.isprintable():
        # No database takes all of them, and nobody could see in what two such keys differ.
        why = "has characters that cannot be printed"
        raise Refused(Reason.INVALID_REQUEST, f"annotation {names.ALLOW_SHARED_IP} {why}")
    return key or None


def usable_ports(view: ServiceView) -> tuple[Port, ...]:
    """Those that mean something. The API server lets no others in; the book would refuse the whole transaction."""
    return tuple(p for p in view.ports if p.protocol in PROTOCOLS and 1 <= p.port <= 65535)


def _ports(view: ServiceView) -> tuple[Port, ...]:
    usable = usable_ports(view)
    if len(usable) != len(view.ports):
        odd = next(p for p in view.ports if p not in usable)
        number = odd.port if abs(odd.port) < 10**6 else "out of range"
        raise Refused(Reason.INVALID_REQUEST, f"port {number} with protocol {odd.protocol[:20]!r} is no port")
    return usable


def _families(view: ServiceView) -> tuple[tuple[Family, ...], bool]:
    named = view.ip_families
    if not named:
        if not view.cluster_ip or view.cluster_ip == "None":
            raise Refused(Reason.WAITING_FOR_FAMILIES, "the Service has neither ipFamilies nor a clusterIP yet")
        named = (Family.IPV6.value if ":" in view.cluster_ip else Family.IPV4.value,)
    try:
        families = tuple(dict.fromkeys(Family(name) for name in named))
    except ValueError:
        raise Refused(Reason.INVALID_REQUEST, f"ipFamilies {', '.join(named)[:60]} has an unknown family") from None
    return families, view.ip_family_policy != "PreferDualStack"


def _group_name(view: ServiceView) -> str | None:
    text = view.annotation(names.SERVICE_GROUP)
    if text is None:
        return None
    name = text.strip()
    if not name or len(name) > 253:
        raise Refused(Reason.INVALID_REQUEST, f"annotation {names.SERVICE_GROUP} is not the name of a ServiceGroup")
    return name


def _multi_pool(view: ServiceView) -> bool | None:
    text = view.annotation(names.MULTI_POOL)
    if text is None:
        return None
    if text.strip() not in ("true", "false"):
        raise Refused(Reason.INVALID_REQUEST, f"annotation {names.MULTI_POOL} must be true or false")
    return text.strip() == "true"


def _addresses(view: ServiceView, families: tuple[Family, ...]) -> tuple[Address, ...]:
    """`purelb.io/addresses` wins over `spec.loadBalancerIP` (A10); at most one of each family asked for (A11)."""
    annotation = view.annotation(names.ADDRESSES)
    text = view.load_balancer_ip if annotation is None else annotation
    if not text.strip():
        return ()
    found: list[Address] = []
    for part in text.split(",", 3):
        try:
            found.append(parse_service_address(part.strip()))
        except InvalidAddress as error:
            raise Refused(Reason.INVALID_REQUEST, f"requested address {error}") from None
    asked = [family_of(address) for address in found]
    if len(set(asked)) != len(asked):
        raise Refused(Reason.INVALID_REQUEST, "more than one address of a family is requested")
    strangers = [str(address) for address in found if family_of(address) not in families]
    if strangers:
        raise Refused(
            Reason.ADDRESS_FAMILY_NOT_REQUESTED, f"requested address {strangers[0]} is of a family not in ipFamilies"
        )
    return tuple(found)
