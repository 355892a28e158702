"""What a number depends on: the machine, the programs, and how busy the machine was; and what a process has used."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def facts() -> str:
    """One line: cores and their kind, Python, SQLite, kernel, and the load average of the last minute."""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    return (
        f"{cores} cores ({_cpu_model()}), Linux {platform.release()}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, load average before: {load:.2f}"
    )


def postgresql_version(programs: Path) -> str:
    """As the server program says it: `17.2`."""
    said = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return said.split()[2]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used since its start: seconds of CPU, and bytes of memory at the most and now (proc(5))."""

    cpu_s: float
    peak_bytes: int
    now_bytes: int

    @property
    def peak_mib(self) -> float:
        return self.peak_bytes / 2**20


def usage(pid: int) -> Usage:
    """Of one process, without its children. Raises FileNotFoundError where it is gone."""
    # The name in field 2 may hold spaces; what follows its bracket starts with field 3.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    kib = {name: int(status[name].split()[0]) for name in ("VmHWM", "VmRSS")}
    return Usage(cpu_s, kib["VmHWM"] * 1024, kib["VmRSS"] * 1024)
