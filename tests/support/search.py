"""How long to search: `make search` looks at many times as many interleavings as a test run does."""

from __future__ import annotations

import os
from typing import Final

SEARCH_TIMES: Final = int(os.environ.get("SEARCH_TIMES", "1"))
