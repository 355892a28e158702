"""The docs say what the program does: the page of settings is generated, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from purelb_sm.cli.settings_page import PREFIX, VERBS, flags, page, variable
from purelb_sm.settings import AllocatorSettings, ClusterSettings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "settings.md"


def test_the_page_of_settings_is_that_of_the_program() -> None:
    assert PAGE.read_text() == page(), "run: python -m purelb_sm.cli.settings_page > docs/reference/settings.md"


@pytest.mark.parametrize(("verb", "settings"), VERBS.items())
def test_every_flag_that_a_verb_has_is_a_setting(verb: str, settings: type[ClusterSettings]) -> None:
    known = {variable(name, field).lower().removeprefix(PREFIX) for name, field in settings.model_fields.items()}
    assert {name.removesuffix("_") for name in flags(verb)} <= known | set(settings.model_fields)


def test_every_setting_is_read_from_the_variable_that_the_table_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURELB_CLASS", "example.com/lb")
    monkeypatch.setenv("PURELB_WEB_PORT", "7999")
    monkeypatch.setenv("CLASS", "somebody-elses")
    settings = AllocatorSettings.model_validate({})
    assert (settings.load_balancer_class, settings.web_port) == ("example.com/lb", 7999)


@pytest.mark.parametrize("file", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=str)
def test_no_link_of_the_docs_leads_nowhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", file.read_text()):
        if not target.startswith("http"):
            assert (file.parent / target).exists(), f"{file.name} links to {target}"
