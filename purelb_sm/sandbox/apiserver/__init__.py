"""An emulated Kubernetes API server over real HTTP; see `server.py`."""

from purelb_sm.sandbox.apiserver.faults import Fault, Faults
from purelb_sm.sandbox.apiserver.server import ApiServer, serve, write_kubeconfig
from purelb_sm.sandbox.apiserver.status import StatusError

__all__ = ["ApiServer", "Fault", "Faults", "StatusError", "serve", "write_kubeconfig"]
