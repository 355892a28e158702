"""`python -m purelb_sm.sandbox.apiserver`: the emulated API server as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import sys
from pathlib import Path

from purelb_sm.sandbox.apiserver.server import HISTORY, ApiServer, serve, write_kubeconfig


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="purelb_sm.sandbox.apiserver", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--fd", type=int, nargs="*", default=[], help="listening sockets to use instead")
    parser.add_argument("--data", type=Path, help="directory that keeps the objects; without it they are in memory")
    parser.add_argument("--history", type=int, default=HISTORY, help="changes kept for each kind")
    parser.add_argument("--bookmark-interval", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--token-file", type=Path, help="lines of TOKEN,USER; then a request needs one of the tokens")
    parser.add_argument("--kubeconfig-out", type=Path, help="write a kubeconfig there when ready")
    return parser.parse_args()


def _tokens(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    rows = [line.split(",") for line in path.read_text().splitlines() if line.strip()]
    return {row[0].strip(): row[1].strip() for row in rows}


async def _run(arguments: argparse.Namespace) -> None:
    tokens = _tokens(arguments.token_file)
    server = ApiServer(arguments.data, tokens, arguments.history, bookmark_s=arguments.bookmark_interval)
    sockets = [socket.socket(fileno=fd) for fd in arguments.fd]
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serve(server, sockets=sockets, host=arguments.host, port=arguments.port) as url:
        if arguments.kubeconfig_out is not None:
            write_kubeconfig(arguments.kubeconfig_out, url, next(iter(tokens), None))
        sys.stdout.write(json.dumps({"url": url}) + "\n")
        sys.stdout.flush()
        await stop.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(_run(_arguments()))
