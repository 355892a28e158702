"""What would change a refusal, or a silence: one sentence for each, for `purelb explain` and its readers (spec B3)."""

from __future__ import annotations

from typing import Final

from purelb_sm.domain import names
from purelb_sm.errors import Reason

REMEDIES: Final[dict[Reason, str]] = {
    Reason.NO_SERVICE_GROUP: (
        f"a ServiceGroup {names.DEFAULT_GROUP} in the install namespace, or the annotation {names.SERVICE_GROUP} with "
        "the name of one that is there"
    ),
    Reason.UNKNOWN_SERVICE_GROUP: (
        f"a ServiceGroup of that name in the install namespace, or another name in the annotation {names.SERVICE_GROUP}"
    ),
    Reason.INVALID_SERVICE_GROUP: "the ServiceGroup made right: what is wrong with it is said in its condition Ready",
    Reason.INVALID_REQUEST: "the Service's annotations or spec made right",
    Reason.POOL_EXHAUSTED: (
        "an address of the group that comes free, by a Service that is deleted and its quarantine that ends; "
        "more addresses in the group; or another group"
    ),
    Reason.NO_NODE_IN_SUBNET: "a live node in a subnet of one of the group's ranges",
    Reason.NO_POOL_FOR_FAMILY: (
        "a pool of that family in the group, another group, or an ipFamilyPolicy that asks for less"
    ),
    Reason.ADDRESS_IN_USE: "its holder gives it back and its quarantine ends; or another address is asked for",
    Reason.ADDRESS_RESERVED: (
        "the reservation is lifted, ends, or is made for this Service; or another address is asked for"
    ),
    Reason.ADDRESS_OUTSIDE_GROUPS: "a ServiceGroup with that address in a range, or another address is asked for",
    Reason.ADDRESS_FAMILY_NOT_REQUESTED: "that family in the Service's ipFamilies, or an address of one that is",
    Reason.PORT_CONFLICT: "other ports, another sharing key, or the Service that has the port gives it up",
    Reason.SHARING_NOT_ALLOWED: "the same sharing key on all Services of the address, or an address of its own",
    Reason.NAMESPACE_NOT_ALLOWED: "the namespace in the group's spec.namespaces, or a group that serves the namespace",
    Reason.AMBIGUOUS_SERVICE_GROUP: (
        f"one of the groups marked with namespaceDefault, or the annotation {names.SERVICE_GROUP} on the Service"
    ),
    Reason.QUOTA_EXCEEDED: "an address of the namespace that is given back, or a higher maxPerNamespace of the group",
    Reason.FOREIGN_INGRESS: "the other controller lets go of the Service: until then its ingress is left alone",
    Reason.WAITING_FOR_FAMILIES: "the API server fills in the Service's families; nothing needs to be done",
}

NOT_ANNOUNCED: Final = (
    "a live node in the subnet of the address (a local group), with a running agent and, under "
    "externalTrafficPolicy Local, a ready endpoint"
)
"""What an address needs to be announced."""


def remedy(reason: str) -> str:
    """The sentence for the reason as booked; empty for one that is none of a refusal."""
    known = {each.value: sentence for each, sentence in REMEDIES.items()}
    return known.get(reason, "")
