"""What the node agent does to the kernel of its node, and what it learns from it.

Owns: interfaces, addresses that carry our mark, frames that correct the neighbours and that ask who uses an address,
facts about subnets and default routes. Must not know: Kubernetes, Services, groups, elections, the book.

`Kernel` is the real one, `purelb_sm.net.fake.FakeKernel` lives in memory; both are a `KernelProtocol`, and one
contract test runs on both.
"""

from purelb_sm.net.datagrams import DatagramProtocol, Datagrams
from purelb_sm.net.errors import (
    AddressConflict,
    DumpInterrupted,
    ForeignAddress,
    InterfaceMissing,
    InterfaceUnsuitable,
    KernelRefused,
    NetError,
    NotPermitted,
)
from purelb_sm.net.kernel import Kernel
from purelb_sm.net.links import matching
from purelb_sm.net.model import (
    Change,
    Family,
    Held,
    Home,
    Interface,
    IPAddress,
    IPNetwork,
    KernelProtocol,
    Sighting,
    Wanted,
)

__all__ = [
    "AddressConflict",
    "Change",
    "DatagramProtocol",
    "Datagrams",
    "DumpInterrupted",
    "Family",
    "ForeignAddress",
    "Held",
    "Home",
    "IPAddress",
    "IPNetwork",
    "Interface",
    "InterfaceMissing",
    "InterfaceUnsuitable",
    "Kernel",
    "KernelProtocol",
    "KernelRefused",
    "NetError",
    "NotPermitted",
    "Sighting",
    "Wanted",
    "matching",
]
