"""Replaying a recorded scenario: requests with captures, and the comparison of what comes back.

What varies from run to run stands in the recordings as `<kind>`; everything else must be equal. Of a refusal (422) the
wording may differ, but not whose it is, which fields it names, and why.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

RECORDINGS = Path(__file__).parent / "recordings"
SCENARIOS = sorted(p.stem for p in RECORDINGS.glob("*.json"))

_PLACEHOLDERS = {
    "<uid>": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "<rv>": r"\d+",
    "<time>": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z",
    "<ipv4>": r"\d+\.\d+\.\d+\.\d+",
    "<ipv6>": r"[0-9a-f:]*:[0-9a-f:]*",
    "<nodePort>": r"\d{5}",
    "<any>": r".*",
    "<age>": r"(\d+[smhdy])+",
}
_PLACEHOLDER = re.compile("|".join(_PLACEHOLDERS))
# Cells of a Table that vary from run to run, by the name of their column.
_CELLS = {"Age": "<age>", "Last Seen": "<age>", "First Seen": "<age>", "Cluster-IP": "<ipv4>"}


@dataclass
class Replay:
    """One scenario against one server; `differences` tells what did not match."""

    session: aiohttp.ClientSession
    url: str
    headers: dict[str, str]
    captured: dict[str, str] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    async def run(self, scenario: dict[str, Any]) -> None:
        for number, step in enumerate(scenario["steps"]):
            where = f"{scenario['name']} step {number} ({step['request']['method']} {step['request']['path']})"
            await self.step(where, step)

    async def step(self, where: str, step: dict[str, Any]) -> None:
        request, expected = step["request"], step["response"]
        headers = {**self.headers, "Accept": request["accept"]}
        if step.get("note") == "a wrong bearer token":
            headers["Authorization"] = "Bearer wrong"
        data = None
        if "body" in request:
            headers["Content-Type"] = request["contentType"]
            data = self._filled(json.dumps(request["body"])).encode()
        url = self.url + self._filled(request["path"])
        async with self.session.request(request["method"], url, headers=headers, data=data) as response:
            text = await response.text()
            content_type = response.headers.get("Content-Type", "").replace(" ", "").removesuffix(";charset=utf-8")
        if response.status != expected["status"]:
            self.differences.append(f"{where}: status {response.status} instead of {expected['status']}: {text[:400]}")
            return
        if content_type != expected["contentType"]:
            self.differences.append(f"{where}: content type {content_type}, not {expected['contentType']}")
        if "text" in expected:
            self._compare(where, expected["text"], text)
            return
        if "events" in expected:
            self._compare(where, expected["events"], [json.loads(line) for line in text.splitlines()])
            return
        body = json.loads(text)
        self._compare(where, expected["body"], body)
        for name, path in step.get("capture", {}).items():
            value = body
            for part in path.split("."):
                value = value[part]
            self.captured[name] = value

    def _filled(self, text: str) -> str:
        return re.sub(r"\$\{(\w+)\}", lambda match: self.captured[match[1]], text)

    def _compare(self, where: str, expected: Any, found: Any) -> None:
        self.differences += [f"{where}: {text}" for text in differences(loosened(expected), dropped(found))]


def dropped(value: Any) -> Any:
    """A response without what the recordings leave out."""
    if isinstance(value, dict):
        kept = {k: dropped(v) for k, v in value.items() if k != "managedFields"}
        for column in kept.get("columnDefinitions", ()):
            column.pop("description", None)
        return kept
    return [dropped(v) for v in value] if isinstance(value, list) else value


def loosened(expected: Any) -> Any:
    """A recorded response with placeholders also for what its recorder did not replace."""
    if isinstance(expected, list):
        return [loosened(v) for v in expected]
    if not isinstance(expected, dict):
        return expected
    made = {k: loosened(v) for k, v in expected.items()}
    if made.get("kind") == "Status" and made.get("reason") == "Invalid":
        made["message"] = made["message"].partition(" is invalid: ")[0] + " is invalid: <any>"
        for cause in made.get("details", {}).get("causes", ()):
            cause["message"] = "<any>"
        if not made["details"]:
            made["message"] = "<any>"
    if made.get("kind") == "Status" and made.get("reason") == "Timeout":
        made["message"] = re.sub(r"current: \d+", "current: <rv>", made["message"])
    if "generateName" in made:
        made["name"] = made["generateName"] + "<any>"
    if "serverAddress" in made:
        made["serverAddress"] = "<any>"
    if made.get("kind") == "Table":
        _loosen_cells(made)
    return made


def _loosen_cells(table: dict[str, Any]) -> None:
    names = [column["name"] for column in table["columnDefinitions"]]
    for row in table["rows"]:
        for i, name in enumerate(names):
            if name in _CELLS:
                row["cells"][i] = _CELLS[name]
            elif name == "Port(s)":
                row["cells"][i] = re.sub(r":\d{5}/", ":<nodePort>/", row["cells"][i])


def differences(expected: Any, found: Any, path: str = "") -> list[str]:
    """Where the response differs from the recording."""
    if isinstance(expected, dict) and isinstance(found, dict):
        told = [f"{path}.{k} is missing" for k in expected if k not in found]
        told += [f"{path}.{k} is too much: {found[k]!r}" for k in found if k not in expected]
        return told + [d for k in expected if k in found for d in differences(expected[k], found[k], f"{path}.{k}")]
    if isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return [f"{path} has {len(found)} elements instead of {len(expected)}: {json.dumps(found)[:1000]}"]
        pairs = enumerate(zip(expected, found, strict=True))
        return [d for i, (one, other) in pairs for d in differences(one, other, f"{path}[{i}]")]
    if isinstance(expected, str) and _PLACEHOLDER.search(expected):
        return [] if _fits(expected, found) else [f"{path} is {found!r}, not {expected!r}"]
    return [] if expected == found and type(expected) is type(found) else [f"{path} is {found!r}, not {expected!r}"]


def _fits(pattern: str, found: Any) -> bool:
    if pattern == "<nodePort>" and not isinstance(found, int):
        return False
    at, made = 0, ""
    for match in _PLACEHOLDER.finditer(pattern):
        made += re.escape(pattern[at : match.start()]) + _PLACEHOLDERS[match[0]]
        at = match.end()
    return re.fullmatch(made + re.escape(pattern[at:]), str(found), re.DOTALL) is not None
