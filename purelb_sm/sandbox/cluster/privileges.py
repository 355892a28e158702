"""The right to make network namespaces: root has it, another user gets it in a user namespace of their own.

There the program starts again, as root of that namespace and in an empty network. What must be reachable from the
host, such as the port of an emulated API server on its loopback, is opened before and handed over as a file
descriptor: a socket stays in the namespace where it was opened. The other way round there is no way: from inside, the
host's loopback and network are out of reach, so a real API server needs root.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import closing
from typing import Literal, NoReturn

import structlog

from purelb_sm.net import pyroute

log = structlog.get_logger(__name__)

Privileges = Literal["root", "user-namespace"]

_NAMESPACES = ("--net", "--mount")
_AS_ROOT_OF_OUR_OWN = ("--user", "--map-root-user", *_NAMESPACES)
# Set for the program that we start again; its value lists the descriptors that were handed over.
_HANDED_OVER = "PURELB_SANDBOX_DESCRIPTORS"


class NoPrivileges(RuntimeError):
    """Neither as we are nor in a user namespace may we make network namespaces; the message says what the kernel
    answered and what would help."""


def inherited_descriptors() -> list[int] | None:
    """The descriptors handed over, in the order of `keep_fds`, if `ensure_privileges` started this program again; None
    when it did not, and what must be opened on the host is to be opened now. Ask before `ensure_privileges`."""
    text = os.environ.get(_HANDED_OVER)
    return None if text is None else [int(part) for part in text.split(",") if part]


def ensure_privileges(argv: Sequence[str], keep_fds: Sequence[int] = ()) -> Privileges:
    """Returns when this program may make network namespaces. To get there it may be replaced by `argv` (which should
    be itself), in a user namespace, with `keep_fds` open under the same numbers. Raises `NoPrivileges`.

    Call it early: before threads, event loops and child processes, none of which survive.
    """
    if os.environ.pop(_HANDED_OVER, None) is not None:
        _settle_in()
        return "user-namespace"
    why_not = _refusal(_NAMESPACES)
    if why_not is None:
        return "root"
    why_not_user = _refusal(_AS_ROOT_OF_OUR_OWN)
    if why_not_user is not None:
        raise NoPrivileges(
            f"network namespaces need root ({why_not}), or user namespaces, which this machine does not allow "
            f"({why_not_user})"
        )
    for descriptor in keep_fds:
        os.set_inheritable(descriptor, True)
    os.environ[_HANDED_OVER] = ",".join(str(descriptor) for descriptor in keep_fds)
    return _replace_ourselves(["unshare", *_AS_ROOT_OF_OUR_OWN, "--", *argv])


def _replace_ourselves(argv: Sequence[str]) -> NoReturn:
    os.execvp(argv[0], list(argv))  # noqa: S606


def _refusal(flags: Sequence[str]) -> str | None:
    """What the kernel says against namespaces of these kinds; None when it lets us."""
    done = subprocess.run(["unshare", *flags, "true"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip() or f"exit status {done.returncode}"


def _settle_in() -> None:
    """A fresh user namespace has no writable /run for the names of network namespaces, and its loopback is down."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    with closing(pyroute.Socket()) as sock:
        sock.set_up(1)
    log.info("running in a user namespace of our own: the host's network cannot be reached from here")
