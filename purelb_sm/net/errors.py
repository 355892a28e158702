"""What can go wrong at the kernel, as a small tree.

NetError                        (base; `reason` is bounded and may label a metric)
├── NotPermitted                no CAP_NET_ADMIN (or CAP_NET_RAW) in this network namespace
├── InterfaceMissing            no interface of that name, now
├── InterfaceUnsuitable         there is one, but it is not of a kind that may carry our addresses or frames
├── ForeignAddress              the address is there already and is not ours: never taken over, never removed
├── AddressConflict             another station on the link uses the address
├── DumpInterrupted             the kernel's tables changed under every one of several dumps
└── KernelRefused               any other errno, which it carries
"""

from __future__ import annotations

import errno as errno_names
import os

from purelb_sm.errors import PurelbError
from purelb_sm.net.model import IPAddress


class NetError(PurelbError):
    """Base of everything the net layer raises or returns."""

    reason = "NetError"


class NotPermitted(NetError):
    reason = "NotPermitted"


class InterfaceMissing(NetError):
    reason = "InterfaceMissing"

    def __init__(self, interface: str) -> None:
        super().__init__(f"there is no interface {interface}")
        self.interface = interface


class InterfaceUnsuitable(NetError):
    reason = "InterfaceUnsuitable"

    def __init__(self, interface: str, why: str) -> None:
        super().__init__(f"interface {interface} {why}")
        self.interface = interface


class ForeignAddress(NetError):
    reason = "ForeignAddress"

    def __init__(self, address: IPAddress, interface: str) -> None:
        super().__init__(f"{address} on {interface} was not put there by us")
        self.address = address
        self.interface = interface


class AddressConflict(NetError):
    """Not the kernel's word, but the link's: that of the station with this MAC."""

    reason = "AddressConflict"

    def __init__(self, address: IPAddress, interface: str, mac: bytes) -> None:
        super().__init__(f"{address} is used by {mac.hex(':')} on the link of {interface}")
        self.address = address
        self.interface = interface
        self.mac = mac


class DumpInterrupted(NetError):
    reason = "DumpInterrupted"


class KernelRefused(NetError):
    """`errno` is the kernel's number; `detail` its own words (extended acknowledgement), which may be empty."""

    reason = "KernelRefused"

    def __init__(self, errno: int, detail: str = "") -> None:
        name = errno_names.errorcode.get(errno, str(errno))
        super().__init__(f"{name}: {detail or os.strerror(errno)}")
        self.errno = errno


def from_errno(errno: int, interface: str, detail: str = "") -> NetError:
    """The named error for the kernel's answer to a request about `interface`."""
    if errno in (errno_names.ENODEV, errno_names.ENXIO):
        return InterfaceMissing(interface)
    if errno in (errno_names.EPERM,):
        return NotPermitted(detail or "the kernel says that we may not change its network configuration")
    return KernelRefused(errno, detail)
