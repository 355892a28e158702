"""docs/reference/settings.md, from the settings and the flags that the verbs have. A test compares the two."""

from __future__ import annotations

import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from purelb_sm.cli import main
from purelb_sm.settings import AgentSettings, AllocatorSettings, ClusterSettings

PREFIX = "purelb_"
HEAD = """# Settings

Generated from `purelb_sm/settings.py` by `python -m purelb_sm.cli.settings_page`; a test fails when it is not.

What a flag says goes before what the environment says, and that before the default. Durations are seconds. The
database URL may hold a password: give it by environment rather than by flag, which other users of the machine can see.
"""


VERBS: dict[str, type[ClusterSettings]] = {"allocator": AllocatorSettings, "agent": AgentSettings}


def variable(name: str, field: FieldInfo) -> str:
    """The environment variable of a setting."""
    alias = field.validation_alias
    return (alias if isinstance(alias, str) else PREFIX + name).upper()


def flags(command: str) -> dict[str, str]:
    """The flags of a verb, by the name of the parameter that they fill."""
    verb = typer.main.get_command(main.command()).commands[command]  # type: ignore[attr-defined]
    return {
        str(option.name): " / ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
        for option in verb.params
    }


def default(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        value = str(value).lower()
    return "" if value is None or value == "" else f"`{value}`"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for verb, settings in VERBS.items():
        given = flags(verb)
        parts.append(f"## purelb {verb}\n")
        parts.append("| environment | flag | default | meaning |\n|---|---|---|---|")
        for name, field in settings.model_fields.items():
            # A flag named like a word of Python has an underscore after its name.
            flag = given.get(name) or given.get(variable(name, field).lower().removeprefix(PREFIX) + "_", "")
            parts.append(f"| `{variable(name, field)}` | {flag} | {default(field)} | {field.description} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
