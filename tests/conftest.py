"""What every test may use."""

import os

import pytest
from hypothesis import settings

# The same examples in every run, so that a change is judged by what it changes, and no deadline, so that a busy machine
# fails nothing. `make search` draws other examples, and many more; what it finds is kept as a test of its own.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("search", print_blob=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kubeconfig", default=None, help="run the contract tests against this cluster as well as ours")
