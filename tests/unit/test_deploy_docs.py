"""The docs say what the program does: the page of settings is generated, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from purelb_sm.cli import allocator, logs, main
from purelb_sm.cli.settings_page import PREFIX, VERBS, flags, page, variable
from purelb_sm.domain.agent_config import DEFAULT_CONFIG
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


@pytest.mark.spec("A12")
@pytest.mark.parametrize(
    ("given", "class_", "default_class"),
    [
        ([], "purelb.io/purelb", True),
        (["--default-class=false"], "purelb.io/purelb", False),
        (["--class", "example.com/lb", "--default-class=true"], "example.com/lb", True),
    ],
)
def test_flags_say_which_services_are_served(
    monkeypatch: pytest.MonkeyPatch, given: list[str], class_: str, default_class: bool
) -> None:
    served: list[AllocatorSettings] = []

    async def serve(settings: AllocatorSettings) -> None:
        served.append(settings)

    monkeypatch.setattr(allocator, "_serve", serve)
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    result = CliRunner().invoke(main.command(["allocator"]), ["allocator", *given])
    assert result.exit_code == 0, result.output
    assert [(s.load_balancer_class, s.default_class) for s in served] == [(class_, default_class)]


@pytest.mark.parametrize("file", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=str)
def test_no_link_of_the_docs_leads_nowhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", file.read_text()):
        if not target.startswith("http"):
            assert (file.parent / target).exists(), f"{file.name} links to {target}"


def _fields(schema: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for name, field in schema.get("properties", {}).items():
        found |= {name} | _fields(field.get("items", field))
    return found


def test_every_field_of_a_service_group_is_on_its_page() -> None:
    document = yaml.safe_load((ROOT / "deploy" / "crds" / "servicegroups.yaml").read_text())
    page = (ROOT / "docs" / "reference" / "servicegroup.md").read_text()
    told = set(re.findall(r"`([A-Za-z0-9]+)`", page))
    for version in document["spec"]["versions"]:
        parts = version["schema"]["openAPIV3Schema"]["properties"]
        status = set(parts["status"]["properties"])
        outside = _fields(parts["spec"]["properties"]["external"]) | _fields(parts["spec"]["properties"]["netbox"])
        assert (_fields(parts["spec"]) | status) - (outside - {"announce", "aggregation"}) <= told


@pytest.mark.spec("C3")
def test_every_field_of_an_lbnodeagent_is_on_its_page() -> None:
    document = yaml.safe_load((ROOT / "deploy" / "crds" / "lbnodeagents.yaml").read_text())
    page = (ROOT / "docs" / "reference" / "lbnodeagent.md").read_text()
    told = set(re.findall(r"`([A-Za-z0-9]+)`", page))
    for version in document["spec"]["versions"]:
        fields = _fields(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
        assert "noPrefixRoute" in fields
        # `failurePolicy` is told with the one value that it may have.
        assert fields - told <= {"failurePolicy"}


def test_the_page_of_the_lbnodeagent_has_the_defaults_of_the_agents() -> None:
    page = (ROOT / "docs" / "reference" / "lbnodeagent.md").read_text()
    cells = [line.split("|") for line in page.splitlines() if line.count("|") > 3]
    rows = {row[1].strip("` "): row[-2].strip() for row in reversed(cells)}
    garp, both = DEFAULT_CONFIG.garp, (DEFAULT_CONFIG.local, DEFAULT_CONFIG.remote)
    expected = {
        "localInterface": f"`{DEFAULT_CONFIG.local_interface}`",
        "dummyInterface": f"`{DEFAULT_CONFIG.dummy_interface}`",
        "enabled": f"`{garp.enabled}`".lower(),
        "initialDelay": f"`{garp.initial_delay_s * 1000:.0f}ms`",
        "count": f"`{garp.count}`",
        "interval": f"`{garp.interval_s * 1000:.0f}ms`",
        "verifyBeforeSend": f"`{garp.verify}`".lower(),
        "validLifetime": "`{}`; `{}` on the dummy interface".format(*(how.lifetime_s or 0 for how in both)),
        "noPrefixRoute": "`{}`; `{}` on the dummy interface".format(*(str(how.noprefixroute).lower() for how in both)),
    }
    assert {name: rows[name] for name in expected} == expected


def test_every_table_of_a_benchmark_has_its_place() -> None:
    document = (ROOT / "docs" / "performance.md").read_text()
    programs = "\n".join(file.read_text() for file in (ROOT / "benchmarks").glob("*.py"))
    tables = set(re.findall(r'(?:Table|_table)\("(\w+)"', programs)) | {"crowded"}
    assert tables >= {"kernel", "failover", "announce", "agent"}
    assert [name for name in sorted(tables) if f"<!-- begin {name} -->\n" not in document] == []
    assert [name for name in sorted(tables) if f"<!-- end {name} -->" not in document] == []


def test_every_verb_is_on_the_page_of_the_command_line() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    verbs = [command.name for command in main.command().registered_commands]
    assert len(verbs) > 10
    assert [verb for verb in verbs if f"`purelb {verb}`" not in page] == []
