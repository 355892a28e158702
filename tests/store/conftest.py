"""Both engines for every test of the store."""

from tests.support.databases import database_url, empty_url, postgresql_cluster, sqlite_template

__all__ = ["database_url", "empty_url", "postgresql_cluster", "sqlite_template"]
