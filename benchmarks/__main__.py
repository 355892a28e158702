"""`python -m benchmarks NAME …`: runs benchmarks, prints their tables, and with `--write` puts them into the docs."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from benchmarks import allocator, announce, engine, failover, footprint, idle, kernel, recreate, restart
from benchmarks.tables import Table, write

NAMES = (
    "engine",
    "engine-postgresql",
    "allocator",
    "restart",
    "recreate",
    "idle",
    "kernel",
    "failover",
    "announce",
    "agent",
)
COUNTS = (1, 200, 1000, 5000)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*NAMES, "all"], metavar="NAME", help=f"{', '.join(NAMES)} or all")
    parser.add_argument("--kubeconfig", type=Path, help="a real cluster instead of the sandbox's API server")
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that the benchmark works")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    return parser.parse_args()


def _runs(name: str, arguments: argparse.Namespace) -> Coroutine[Any, Any, list[Table]]:
    quick, kubeconfig = arguments.quick, arguments.kubeconfig
    match name:
        case "engine" | "engine-postgresql":
            database = "SQLite" if name == "engine" else "PostgreSQL"
            return engine.bench(database, (0, 2000, 20_000), 4) if quick else engine.bench(database, engine.SIZES)
        case "allocator":
            return allocator.bench(kubeconfig, COUNTS[:2] if quick else COUNTS, 500 if quick else allocator.FULL)
        case "restart":
            return restart.bench(kubeconfig, (50,) if quick else (1000, 10_000))
        case "recreate":
            return recreate.bench(kubeconfig, 100 if quick else 1000)
        case "idle":
            return idle.bench(kubeconfig, (50,) if quick else (1000,), 10.0 if quick else 60.0)
        case "kernel":
            return kernel.bench((200,) if quick else (1000, 10_000))
        case "failover":
            return failover.bench(2 if quick else 50)
        case "announce":
            return announce.bench(20 if quick else 200, 50 if quick else 1000)
        case "agent":
            return footprint.bench((0, 50) if quick else (0, 1000, 10_000), 10.0 if quick else 60.0)
    raise ValueError(name)


def main() -> None:
    arguments = _arguments()
    for name in NAMES if "all" in arguments.names else arguments.names:
        for table in asyncio.run(_runs(name, arguments)):
            print(table.markdown(), flush=True)
            if arguments.write:
                write(table)


if __name__ == "__main__":
    main()
