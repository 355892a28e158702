"""The agent's process imports what it uses, and what it left out is there for whoever asks for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SEES = """
import sys

import pytest
from purelb_sm.cli.lean import postpone_init
for package in ("kubernetes", "pyroute2", "no_such_package", "json"):
    postpone_init(package)
import purelb_sm.agent.agent
from purelb_sm.net import Kernel
unwanted = ("kubernetes.client", "kubernetes.dynamic", "requests", "pyroute2.ndb", "sqlalchemy", "alembic", "psycopg")
assert not [name for name in unwanted if name in sys.modules], [name for name in unwanted if name in sys.modules]
import kubernetes, pyroute2
assert not hasattr(pyroute2, "__nothing__")
assert pyroute2.NDB and kubernetes.client.CoreV1Api
from pyroute2 import AsyncIPRoute
from pyroute2.iproute.linux import AsyncIPRoute as same
assert AsyncIPRoute is same
"""


def test_an_agent_imports_no_database_and_no_second_client() -> None:
    done = subprocess.run([sys.executable, "-c", SEES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


STARTS = """
import gc, sys
from purelb_sm.cli import main
seen = {}
def look(modules):
    app = main.made(modules)
    seen.update(modules=list(modules), collects=gc.isenabled())
    return app
main.made, main.command = main.command, look
sys.argv = ["purelb", "VERB", "--no-such-option"]
sys.stderr = sys.stdout
try:
    main.main()
except SystemExit:
    pass
assert seen == {"modules": ["VERB"], "collects": False}, seen
import structlog
assert structlog.dev.rich is None
assert not [n for n in sys.modules if n.startswith("purelb_sm.cli.ex")]
assert gc.isenabled() and gc.get_freeze_count()
import rich
"""


@pytest.mark.parametrize("verb", ["allocator", "agent"])
def test_a_process_imports_no_other_verb_and_its_garbage_is_collected(verb: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARTS.replace("VERB", verb)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


TRUSTS = """
import ssl
from purelb_sm.kube.trust import trusting_nobody
with trusting_nobody():
    import aiohttp.connector
assert aiohttp.connector._SSL_CONTEXT_VERIFIED.verify_mode == ssl.CERT_REQUIRED
assert not aiohttp.connector._SSL_CONTEXT_VERIFIED.get_ca_certs()
assert ssl.SSLContext.load_default_certs.__name__ == "load_default_certs"
from purelb_sm.kube.client import KubeClient
import asyncio
async def trusts(url):
    async with KubeClient.at(url) as client:
        return client._api.rest_client.ssl_context.cert_store_stats()
assert asyncio.run(trusts("https://127.0.0.1:1")) == ssl.create_default_context().cert_store_stats()
assert asyncio.run(trusts("http://127.0.0.1:1")) == ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).cert_store_stats()
"""


def test_a_connection_that_brings_no_context_trusts_nobody_and_ours_do() -> None:
    done = subprocess.run([sys.executable, "-c", TRUSTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
