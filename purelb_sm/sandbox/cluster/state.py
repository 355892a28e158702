"""Which clusters are on this machine and whose they are, so that what a killed run left behind can be removed.

A file for each cluster, written before its first namespace is made and removed after its last is gone. Its owner is a
process id together with that process's start time, since ids are used again.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import structlog

from purelb_sm.sandbox.cluster import namespace
from purelb_sm.sandbox.cluster.layout import STATE_DIRECTORY

log = structlog.get_logger(__name__)


class PrefixTaken(RuntimeError):
    """A cluster with this prefix is running."""


def claim(prefix: str, namespaces: Sequence[str], directory: Path = STATE_DIRECTORY) -> Path:
    """Records that these namespaces belong to this process. Removes what a dead owner left under the same prefix.

    Raises `PrefixTaken` when its owner lives.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{prefix}.json"
    if path.exists() and not _remove_if_stale(path):
        raise PrefixTaken(f"a cluster with the prefix {prefix} is running")
    pid = os.getpid()
    content = json.dumps({"pid": pid, "started": _started(pid), "namespaces": list(namespaces)})
    fresh = path.with_suffix(".new")
    fresh.write_text(content)
    try:
        os.link(fresh, path)
    except FileExistsError as taken:
        raise PrefixTaken(f"a cluster with the prefix {prefix} is just being started") from taken
    finally:
        fresh.unlink()
    return path


def cleanup_stale(directory: Path = STATE_DIRECTORY) -> list[str]:
    """Removes the namespaces of clusters whose owner is dead, and ends the processes in them; returns the prefixes.

    What belongs to a living process, or to nobody that we know of, is not touched.
    """
    if not directory.is_dir():
        return []
    return [path.stem for path in sorted(directory.glob("*.json")) if _remove_if_stale(path)]


def _remove_if_stale(path: Path) -> bool:
    try:
        content = json.loads(path.read_text())
        alive = _started(int(content["pid"])) == content["started"]
        namespaces = [str(name) for name in content["namespaces"]]
    except (OSError, ValueError, KeyError, TypeError) as broken:
        log.warning("cluster record unreadable, left as it is", path=str(path), error=str(broken))
        return False
    if alive:
        return False
    remove_namespaces(namespaces)
    path.unlink(missing_ok=True)
    log.info("removed what a dead run left", prefix=path.stem, namespaces=len(namespaces))
    return True


def remove_namespaces(names: Sequence[str]) -> None:
    """Ends the processes in them and removes them."""
    for name in names:
        for pid in namespace.processes_in(name):
            _kill(pid)
        namespace.remove(name)


def _kill(pid: int) -> None:
    if pid == os.getpid():
        return
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _started(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when there is no such process. See proc(5)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold anything; the 22nd field is the 20th after it.
    return int(stat.rpartition(")")[2].split()[19])
