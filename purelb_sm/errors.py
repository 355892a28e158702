"""The error tree. What a person may meet has a bounded `reason` that feeds Event, condition, metric and log.

PurelbError
├── Refused               a Service cannot be served now; it stays pending (`Reason` names why)
├── InvalidInput          text from outside that does not mean what its place asks for
│   ├── InvalidAddress    not an address, or one that no Service may have
│   ├── InvalidGroup      a ServiceGroup that cannot be read; names field and value
│   └── InvalidAgentConfig  an LBNodeAgent that cannot be read
├── IllegalTransition     a state machine was asked for a move that its table does not have
├── StoreError
│   ├── TermLost          another allocator leads now; nothing of this transaction was kept
│   ├── Clash             a constraint refused: another holds it; build free space anew and go one by one
│   ├── DatabaseUnavailable  locked, full, cut off or broken: worth trying again
│   ├── SchemaMismatch    the database is older or newer than this program
│   └── HistoryBroken     a row of the history was changed, removed or inserted
├── NetError              the kernel said no, by kind: see purelb_sm/net/errors.py
└── KubeError             what the API server answered, by kind
    ├── NotFound 404, Conflict 409, AlreadyExists 409, Gone 410, Invalid 422, Throttled 429
    └── Unavailable       no answer, a broken one, or 5xx: worth trying again
"""

from __future__ import annotations

from collections.abc import Hashable
from enum import StrEnum


class Reason(StrEnum):
    """Why a Service is refused. Bounded: these are label values of metrics and `reason`s of conditions."""

    NO_SERVICE_GROUP = "NoServiceGroup"
    UNKNOWN_SERVICE_GROUP = "UnknownServiceGroup"
    INVALID_SERVICE_GROUP = "InvalidServiceGroup"
    INVALID_REQUEST = "InvalidRequest"
    POOL_EXHAUSTED = "PoolExhausted"
    NO_NODE_IN_SUBNET = "NoNodeInSubnet"
    NO_POOL_FOR_FAMILY = "NoPoolForFamily"
    ADDRESS_IN_USE = "AddressInUse"
    ADDRESS_RESERVED = "AddressReserved"
    ADDRESS_OUTSIDE_GROUPS = "AddressOutsideGroups"
    ADDRESS_FAMILY_NOT_REQUESTED = "AddressFamilyNotRequested"
    PORT_CONFLICT = "PortConflict"
    SHARING_NOT_ALLOWED = "SharingNotAllowed"
    NAMESPACE_NOT_ALLOWED = "NamespaceNotAllowed"
    AMBIGUOUS_SERVICE_GROUP = "AmbiguousServiceGroup"
    QUOTA_EXCEEDED = "QuotaExceeded"
    FOREIGN_INGRESS = "ForeignIngress"
    WAITING_FOR_FAMILIES = "WaitingForFamilies"


MAX_SENTENCE = 900
"""An Event takes 1024 characters; what a user wrote is quoted, not copied."""


def sayable(text: str) -> str:
    """`text` as Events, conditions, both databases and terminals all take it: printable, and not endless.

    What is said must come back from the book as it went in, or it would be said again at every look.
    """
    shown = "".join(c if c.isprintable() else "\ufffd" for c in text[:MAX_SENTENCE])
    return shown if len(text) <= MAX_SENTENCE else shown[:-1] + "…"


class PurelbError(Exception):
    """Base of everything this package raises on purpose."""

    reason: str = "Error"


class Refused(PurelbError):
    """A Service cannot be served now. `message` is one sentence for its owner; it never names another holder.

    `obstacles` are what may go and let it in, where that is known (`domain.sharing.Obstacle`).
    """

    reason: Reason

    def __init__(
        self,
        reason: Reason,
        message: str,
        obstacles: tuple[Hashable, ...] = (),
        same_if: tuple[str, str] | None = None,
    ) -> None:
        super().__init__(sayable(message))
        self.reason = reason
        self.message = sayable(message)
        self.obstacles = obstacles
        self._same_if = same_if

    def as_said(self, before: str) -> Refused:
        """This refusal in the words of `before`, if those begin and end as `same_if` says: what is between them is a
        number that nobody waits for, and who is refused again for the same reason is told nothing new."""
        if self._same_if is None or not (before.startswith(self._same_if[0]) and before.endswith(self._same_if[1])):
            return self
        return Refused(self.reason, before, self.obstacles, self._same_if)


class InvalidInput(PurelbError):
    """Text from outside does not mean what its place asks for."""

    reason = "InvalidInput"


class InvalidAddress(InvalidInput):
    """`text` is not an address that a Service may have; `why` ends the sentence "… is not usable: "."""

    reason = "InvalidAddress"

    def __init__(self, text: str, why: str) -> None:
        shown = text if len(text) <= 64 else text[:61] + "..."
        super().__init__(f"{shown!r}: {why}")
        self.text = text
        self.why = why


class InvalidGroup(InvalidInput):
    """A ServiceGroup cannot be used. `field` is a path such as `spec.local.v4pools[0].pool`."""

    reason = "ParseFailed"

    def __init__(self, field: str, value: object, why: str) -> None:
        text = repr(value)
        shown = text if len(text) <= 80 else text[:77] + "..."
        super().__init__(sayable(f"{field}: {shown}: {why}"))
        self.field = field
        self.value = value
        self.why = why


class InvalidAgentConfig(InvalidGroup):
    """An LBNodeAgent cannot be used: its nodes announce nothing by it."""


class IllegalTransition(PurelbError):
    """The table of `machine` has no move `trigger` from `state`, or a guard said no."""

    reason = "IllegalTransition"

    def __init__(self, machine: str, state: str, trigger: str, why: str = "no such move") -> None:
        super().__init__(f"{machine}: {trigger} from {state}: {why}")
        self.machine = machine
        self.state = state
        self.trigger = trigger


class StoreError(PurelbError):
    """The book could not do what was asked. Nothing of the transaction was kept."""

    reason = "StoreError"


class TermLost(StoreError):
    """Another allocator has raised the term: this one must stop leading. Nothing of the transaction was kept."""

    reason = "TermLost"


class Clash(StoreError):
    """A constraint of the database refused (an address, port or name is taken). Nothing of the transaction was kept.

    The caller's idea of what is free is wrong: build it anew from the book, and replay the batch one by one.
    """

    reason = "Clash"


class DatabaseUnavailable(StoreError):
    """No database, or it is locked, full, broken or cut off. Never half-kept: if it came from `commit`, all or nothing
    of the transaction was kept, and loading again tells which."""

    reason = "DatabaseUnavailable"


class SchemaMismatch(StoreError):
    """The database's schema is not the one this program was written for."""

    reason = "SchemaMismatch"


class HistoryBroken(StoreError):
    """The hash chain does not hold; `seq` is the first row that shows it."""

    reason = "HistoryBroken"

    def __init__(self, seq: int, why: str) -> None:
        super().__init__(f"history row {seq}: {why}")
        self.seq = seq
        self.why = why


class KubeError(PurelbError):
    """The API server said no. `status` is the HTTP status (0: no answer), `kind_reason` the Status object's reason."""

    reason = "KubeError"

    def __init__(
        self, message: str, *, status: int = 0, kind_reason: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind_reason = kind_reason
        self.retry_after_s = retry_after_s


class NotFound(KubeError):
    """404: the object, its namespace or its kind is not there."""


class Conflict(KubeError):
    """409 Conflict: the object has another resourceVersion (or uid) than the one we acted on."""


class AlreadyExists(KubeError):
    """409 AlreadyExists on create."""


class Gone(KubeError):
    """410: the resourceVersion or continue token is too old; list again."""


class Invalid(KubeError):
    """400, 415 or 422: the server will never accept this request."""


class Forbidden(KubeError):
    """401 or 403."""


class Throttled(KubeError):
    """429: come back after `retry_after_s`."""


class Unavailable(KubeError):
    """No answer, a broken answer, or 5xx: the same request may work later."""
