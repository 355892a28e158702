"""Sandboxes for end-to-end tests: the emulated API server, or with `--kubeconfig FILE` a real one."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from purelb_sm.sandbox.launcher import Options, Sandbox
from tests.netns.support import why_no_namespaces

Start = Callable[[Options], Awaitable[Sandbox]]

_count = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.e2e)
    wanted = [item for item in here if item.get_closest_marker("root")]
    why = why_no_namespaces() if wanted else None
    if why is not None:
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason=why))


def placed(options: Options, folder: Path, kubeconfig: str | None) -> Options:
    """The options of a sandbox in a place of its own in `folder`, with network namespaces of its own."""
    number = next(_count)
    return replace(
        options,
        directory=options.directory or folder / f"sandbox{number}",
        prefix=options.prefix or f"e{os.getpid() % 100_000}x{number}",
        kubeconfig=Path(kubeconfig) if kubeconfig else options.kubeconfig,
        handle_sigterm=False,
    )


FAILED = pytest.StashKey[bool]()
"""Whether the test has failed: what several tests share is then made anew for the next one."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture
async def start_sandbox(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts sandboxes with the options given; their logs stay in the test's directory, and they end with the test."""
    async with AsyncExitStack() as stack:
        real = request.config.getoption("--kubeconfig")

        async def start(options: Options) -> Sandbox:
            return await stack.enter_async_context(Sandbox(placed(options, tmp_path, real)))

        yield start


@pytest.fixture
async def sandbox(start_sandbox: Start) -> Sandbox:
    """Three nodes, agents, an allocator, the sample groups. Tests that need other things use `start_sandbox`."""
    return await start_sandbox(Options(nodes=3))
