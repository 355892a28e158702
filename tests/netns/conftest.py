"""Network namespaces of the tests: made when asked for, gone afterwards, and a reason when the machine forbids them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from purelb_sm.sandbox.cluster import namespace
from tests.netns.support import why_no_namespaces

_count = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanted = [item for item in items if item.get_closest_marker("root")]
    why = why_no_namespaces() if wanted else None
    if why is not None:
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture
def make_namespace() -> Iterator[Callable[[], str]]:
    """Makes namespaces, each with a name of its own; all are removed when the test is over."""
    made: list[str] = []

    def make() -> str:
        name = f"t{os.getpid()}-{next(_count)}"
        namespace.create(name)
        made.append(name)
        return name

    yield make
    for name in made:
        namespace.remove(name)
