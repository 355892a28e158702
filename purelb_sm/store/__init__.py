"""The database: the book and its transactions, the history chain, audit queries, schema upgrade. Synchronous."""

from purelb_sm.store.book import Book
from purelb_sm.store.reporting import ReportOutcome
from purelb_sm.store.unit import Unit

__all__ = ["Book", "ReportOutcome", "Unit"]
