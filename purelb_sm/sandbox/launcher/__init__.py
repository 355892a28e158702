"""A whole installation on one machine: API server, nodes with agents, allocator, and a book.

Owns: processes, their state directory, what the API server holds at the start. Must not know: how an address is chosen
or announced. `Sandbox` is what tests, `purelb sandbox up` and the demo run on.
"""

from purelb_sm.sandbox.launcher.installation import CommandFailed, Done
from purelb_sm.sandbox.launcher.product import Running
from purelb_sm.sandbox.launcher.sandbox import Options, Sandbox
from purelb_sm.sandbox.launcher.waiting import NotInTime, wait_until

__all__ = ["CommandFailed", "Done", "NotInTime", "Options", "Running", "Sandbox", "wait_until"]
