"""The annotations `purelb.io/announcing-IPv4` and `-IPv6`: which node holds which local address of a Service (C9).

One address of a family: `node, interface`. Several: `node,interface,ip`, separated by spaces, in the order of the
ingress. All nodes write the same annotation, so each changes its own entry only, and replaces that of whoever held
before what it holds now. An interface's name may hold commas, a node's name may not: an entry is split at its first
comma and at its last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple

from purelb_sm.domain import names
from purelb_sm.domain.addresses import Address, Family, family_of, parse_ip
from purelb_sm.domain.views import ServiceView
from purelb_sm.errors import InvalidAddress

_ANNOTATIONS: Final = {Family.IPV4: names.ANNOUNCING_V4, Family.IPV6: names.ANNOUNCING_V6}


class Holder(NamedTuple):
    """Who says that it holds an address, and where."""

    node: str
    interface: str


def announcing_changes(
    view: ServiceView,
    addresses: Collection[Address],
    node: str,
    mine: Mapping[Address, str],
    given_up: Collection[Address] = (),
    remote: Collection[Address] = (),
    dead: Callable[[str], bool] = lambda node: False,
) -> dict[str, str | None]:
    """The annotations that `node` has to write on the Service, None to remove one; empty when they are right.

    `addresses` are those of the ingress; `mine` the ones that this node holds as local, with the interface; `given_up`
    those that it does not hold and that no other will take over; `remote` those that are nobody's in particular.
    `dead`: whether this node is to remove another's entry of what is given up, since that one never will.
    """
    changes: dict[str, str | None] = {}
    for family, annotation in _ANNOTATIONS.items():
        own = [address for address in addresses if family_of(address) is family]
        text = view.annotation(annotation)
        entries = parse_announcing(text or "", own)
        wanted: dict[Address, Holder] = {}
        for address in own:
            holder = Holder(node, mine[address]) if address in mine else entries.get(address)
            # Another's entry is its own affair, or the new holder's; and one of ours stays until it is replaced, but
            # where nobody will.
            stale = holder is not None and address in given_up and address not in mine
            stale = stale and holder is not None and (holder.node == node or dead(holder.node))
            if holder is not None and not stale and address not in remote:
                wanted[address] = holder
        rendered = render_announcing(wanted, own)
        if (rendered or None) != text:
            changes[annotation] = rendered or None
    return changes


def holders_of(view: ServiceView, addresses: Collection[Address]) -> dict[Address, Holder]:
    """Who says of these addresses, which are the Service's, that it holds them."""
    found: dict[Address, Holder] = {}
    for family, annotation in _ANNOTATIONS.items():
        own = [address for address in addresses if family_of(address) is family]
        found |= parse_announcing(view.annotation(annotation) or "", own)
    return found


def parse_announcing(text: str, addresses: Collection[Address]) -> dict[Address, Holder]:
    """The entries for `addresses` (of one family). What cannot be read, or is about another address, is left out."""
    node, _, interface = text.partition(", ")
    if len(addresses) == 1 and node and interface and not (" " in interface or "," in node or " " in node):
        return {next(iter(addresses)): Holder(node, interface)}
    found: dict[Address, Holder] = {}
    for entry in text.split():
        node, _, rest = entry.partition(",")
        interface, _, ip = rest.rpartition(",")
        try:
            address = parse_ip(ip)
        except InvalidAddress:
            continue
        if node and interface and address in addresses:
            found.setdefault(address, Holder(node, interface))
    return found


def render_announcing(holders: Mapping[Address, Holder], addresses: Collection[Address]) -> str:
    """The annotation's text, empty without a holder. Equal for equal holders, whoever renders it."""
    if len(addresses) == 1:
        return ", ".join(next(iter(holders.values()))) if holders else ""
    return " ".join(f"{holders[a].node},{holders[a].interface},{a}" for a in addresses if a in holders)
