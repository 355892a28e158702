"""Both engines for every test of the store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.book import Desk
from tests.support.databases import database_url, empty_url, postgresql_cluster, shared_url, sqlite_template

__all__ = ["database_url", "empty_url", "postgresql_cluster", "shared_url", "sqlite_template"]


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    """A leader at a book of its own."""
    made = Desk(database_url)
    yield made
    made.close()
