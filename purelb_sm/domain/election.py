"""Which node answers for a local address: a pure function of the live nodes, their subnets, and the address.

No node talks to another about it. All that watch the same Leases see the same live nodes, and so decide alike. The
order is by SHA-256 of node name and address (rendezvous hashing): when a node goes, only the addresses it held move,
and when one comes, only those it wins. A node that is being drained comes after all that are not: it gives its
addresses up to them, and keeps what nobody else can have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import sha256

from purelb_sm.domain.addresses import Address, Network, parse_network
from purelb_sm.errors import InvalidAddress

MAX_SUBNETS = 256
"""More subnets than this of one node are not read: a node's Lease must not be able to fill the memory of the others."""


def rank(node: str, address: Address) -> bytes:
    """Where `node` stands in the order for `address`: the lowest is first."""
    return sha256(f"{node}#{address}".encode()).digest()


class Electorate:
    """The live nodes with the subnets each says it is in, and which of them are being drained. Never changed once made;
    equal to one made of the same."""

    __slots__ = ("_masks", "_members", "draining", "nodes")

    def __init__(self, nodes: Mapping[str, Iterable[Network]], draining: Iterable[str] = ()) -> None:
        self.nodes: dict[str, frozenset[Network]] = {name: frozenset(subnets) for name, subnets in nodes.items()}
        self.draining = frozenset(draining).intersection(self.nodes)
        members: dict[tuple[int, int, int], list[str]] = {}
        for name in sorted(self.nodes):
            for subnet in self.nodes[name]:
                key = (subnet.version, subnet.prefixlen, int(subnet.network_address))
                members.setdefault(key, []).append(name)
        self._members = members
        # An address is looked up once per prefix length in use, however many subnets there are.
        self._masks: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        for version, length in sorted({key[:2] for key in members}):
            bits = 32 if version == 4 else 128
            self._masks[version].append((length, ((1 << length) - 1) << (bits - length)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Electorate) and (self.nodes, self.draining) == (other.nodes, other.draining)

    def __hash__(self) -> int:
        return hash((frozenset(self.nodes.items()), self.draining))

    def candidates(self, address: Address) -> list[str]:
        """The live nodes that have the address's subnet, in no particular order, each once."""
        value, version = int(address), address.version
        found: list[str] = []
        for length, mask in self._masks[version]:
            found += self._members.get((version, length, value & mask), ())
        return found if len(found) < 2 else list(dict.fromkeys(found))

    def winner(self, address: Address, preferred: Collection[str] = ()) -> str | None:
        """The node that answers for the address, None where no live node has its subnet.

        The first of the candidates that are preferred, if there is one that is not being drained; else of all.
        """
        candidates = self.candidates(address)
        if preferred:
            candidates = [n for n in candidates if n in preferred and n not in self.draining] or candidates
        return self.first(candidates, address)

    def first(self, candidates: Sequence[str], address: Address) -> str | None:
        """The first of the candidates in the order for `address`, those that are being drained behind all others."""
        return first(candidates, address, self.draining)

    def changed_since(self, before: Electorate) -> frozenset[str]:
        """The nodes that came, went, have other subnets, or began or ceased to be drained."""
        names = self.nodes.keys() | before.nodes.keys()
        moved = frozenset(name for name in names if self.nodes.get(name) != before.nodes.get(name))
        return moved | (self.draining ^ before.draining)

    def next_winner(self, address: Address, was: str | None, changed: frozenset[str]) -> str | None:
        """The winner, given that `was` won in an electorate from which this one differs in the nodes `changed`.

        The first of those that did not change is still `was`, if it did not: only what changed has to be compared
        with it. So a node that comes or goes costs two hashes an address, not one for every node.
        """
        if was is None or was in changed:
            return self.winner(address)
        rivals = [node for node in changed if self.has_subnet_of(node, address)]
        return self.first([was, *rivals], address) if rivals else was

    def has_subnet_of(self, node: str, address: Address) -> bool:
        return any(s.version == address.version and address in s for s in self.nodes.get(node, ()))


def first(candidates: Sequence[str], address: Address, last: Collection[str] = ()) -> str | None:
    """The first of the candidates in the order for `address`; those in `last` only if there is no other."""
    if last and len(candidates) > 1:
        candidates = [node for node in candidates if node not in last] or candidates
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    suffix = f"#{address}".encode()
    return min((sha256(node.encode() + suffix).digest(), node) for node in candidates)[1]


NOBODY = Electorate({})


def render_subnets(subnets: Iterable[Network]) -> str:
    """The Lease annotation `purelb.io/subnets`: CIDRs, comma separated, in one order only."""
    return ",".join(
        str(s) for s in sorted(set(subnets), key=lambda s: (s.version, int(s.network_address), s.prefixlen))
    )


def parse_subnets(text: str) -> frozenset[Network]:
    """What a Lease's annotation says. A part that is no CIDR is passed over: another node's slip must stop nobody."""
    found: set[Network] = set()
    for part in text.split(",", MAX_SUBNETS)[:MAX_SUBNETS]:
        try:
            found.add(parse_network(part.strip()))
        except InvalidAddress:
            continue
    return frozenset(found)
