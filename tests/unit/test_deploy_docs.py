"""The docs say what the program does: the table of settings is compared with the settings themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from purelb_sm.settings import AgentSettings, AllocatorSettings, ClusterSettings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "settings.md"
SECTIONS: dict[str, type[ClusterSettings]] = {
    "Both": ClusterSettings,
    "Allocator": AllocatorSettings,
    "Agent": AgentSettings,
}


def rows(section: str) -> list[tuple[str, ...]]:
    """The cells of the table under a heading of the page, without its head."""
    text = PAGE.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def expected(name: str, field: FieldInfo) -> tuple[str, ...]:
    alias = field.validation_alias
    public = alias.removeprefix("purelb_") if isinstance(alias, str) else name
    default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    # By kind first: 1.0 is equal to true.
    shown = str(default).lower() if isinstance(default, bool) else "" if default is None else default
    flag = "--" + public.replace("_", "-")
    if isinstance(default, bool):
        flag += f" / --no-{public.replace('_', '-')}"
    return f"`{flag}`", f"`PURELB_{public.upper()}`", f"`{shown}`" if shown != "" else "", field.description or ""


@pytest.mark.parametrize("section", SECTIONS)
def test_the_table_of_settings_is_that_of_the_program(section: str) -> None:
    shared = set() if section == "Both" else set(ClusterSettings.model_fields)
    fields = {n: f for n, f in SECTIONS[section].model_fields.items() if n not in shared}
    assert rows(section) == [expected(name, field) for name, field in fields.items()]


def test_every_setting_is_read_from_the_variable_that_the_table_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURELB_CLASS", "example.com/lb")
    monkeypatch.setenv("PURELB_WEB_PORT", "7999")
    monkeypatch.setenv("CLASS", "somebody-elses")
    settings = AllocatorSettings.model_validate({})
    assert (settings.load_balancer_class, settings.web_port) == ("example.com/lb", 7999)


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=str)
def test_no_link_of_the_docs_leads_nowhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
