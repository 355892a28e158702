"""The page of failures names what there is: log lines, metrics, Events, tests."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "failures.md").read_text()
QUOTED = sorted(set(re.findall(r"`([^`]+)`", PAGE)))


@cache
def sources() -> str:
    return "\n".join(path.read_text() for path in sorted((ROOT / "purelb_sm").rglob("*.py")))


@pytest.mark.parametrize("name", [one for one in QUOTED if re.fullmatch(r"[a-z]+(_[a-z]+)+", one)])
def test_every_log_line_and_metric_of_the_page_is_written_somewhere(name: str) -> None:
    assert f'"{name.removesuffix("_total")}"' in sources()


@pytest.mark.parametrize("name", [one for one in QUOTED if one.startswith("…_")])
def test_every_metric_of_agents_on_the_page_is_counted(name: str) -> None:
    assert f'"{name.removeprefix("…_").removesuffix("_total")}"' in sources()


@pytest.mark.parametrize("name", ["AddressConflict", "NotAnnounced", "ForeignAddress"])
def test_every_event_and_reason_of_the_page_exists(name: str) -> None:
    assert name in QUOTED
    assert f'"{name}"' in sources()
