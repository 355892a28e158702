"""What a ServiceGroup is told of itself: in tables, and when it is written (spec A28)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from purelb_sm.allocator.engine import GroupVerdicts
from purelb_sm.allocator.groups import ADDRESSES_SHOWN, COUNT_MAX, GroupNotice, group_notice
from purelb_sm.allocator.metrics import AllocatorMetrics
from purelb_sm.allocator.teller import GroupTeller
from purelb_sm.domain.addresses import Family
from purelb_sm.domain.groups import Group, parse_group
from purelb_sm.domain.usage import FamilyUsage, GroupUsage
from purelb_sm.domain.views import ObjectView
from purelb_sm.errors import Conflict, InvalidGroup, KubeError, NotFound, Unavailable
from tests.support.domain import NOW, group, group_view, pools
from tests.support.virtual_time import run_virtual, virtual_clock

SPEC = pools("10.0.0.0-10.0.0.9", "fd30::/64")
USED = GroupUsage(
    {
        Family.IPV4: FamilyUsage(size=10, available=4, held=3, quarantined=2, reserved=1, orphaned=5),
        Family.IPV6: FamilyUsage(size=2**64, available=2**64 - 9, held=8, quarantined=7, reserved=6, orphaned=0),
    }
)
FULL = GroupUsage({Family.IPV4: FamilyUsage(size=10, held=8, quarantined=2)}, (Family.IPV4,))
REFUSED = InvalidGroup("spec.local.v4pools[0].pool", "junk", "is neither a CIDR nor first-last")


def notice(
    view: ObjectView, usage: GroupUsage = USED, refused: InvalidGroup | None = None, later_s: float = 0
) -> GroupNotice | None:
    accepted = None if refused else parse_group(view)
    return group_notice(view, accepted, refused, usage, NOW + timedelta(seconds=later_s))


def told(view: ObjectView, made: GroupNotice | None) -> ObjectView:
    """The group after the API server took the notice, a merge patch."""
    assert made is not None
    after = status(view) | made.status
    return replace(view, status={name: value for name, value in after.items() if value is not None})


def status(view: ObjectView) -> dict[str, Any]:
    return dict(view.status) if isinstance(view.status, Mapping) else {}


def conditions(view: ObjectView) -> dict[str, dict[str, Any]]:
    return {c["type"]: c for c in status(view)["conditions"]}


@pytest.mark.spec("A28")
def test_every_number_is_under_its_name_and_fits_an_int64() -> None:
    view = told(group_view("default", SPEC), notice(group_view("default", SPEC)))
    found = {name: value for name, value in status(view).items() if "IPv" in name}
    assert found == {
        "allocatedIPv4": 3,
        "availableIPv4": 4,
        "quarantinedIPv4": 2,
        "reservedIPv4": 1,
        "orphanedIPv4": 5,
        "allocatedIPv6": 8,
        "availableIPv6": COUNT_MAX,
        "quarantinedIPv6": 7,
        "reservedIPv6": 6,
        "orphanedIPv6": 0,
    }


@pytest.mark.spec("A28")
@pytest.mark.parametrize(
    ("version", "spec", "announce", "bound"),
    [
        ("v2", SPEC, "Local", None),
        ("v2", pools("10.0.0.0/24", kind="remote"), "Remote", None),
        ("v1", SPEC, "Auto", None),
        ("v2", SPEC | {"namespaces": ["shop", "infra", "shop"]}, "Local", ["infra", "shop"]),
    ],
)
def test_it_says_how_it_is_announced_and_for_whom_it_is(
    version: str, spec: dict[str, Any], announce: str, bound: list[str] | None
) -> None:
    view = group_view("default", spec, version=version)
    said = status(told(view, notice(view)))
    assert (said["announce"], said["ipam"], said.get("boundNamespaces")) == (announce, "Cluster", bound)


@pytest.mark.spec("A28")
def test_of_very_many_ranges_the_first_are_shown_and_how_many_more() -> None:
    many = pools(*(f"10.0.{n}.0/24" for n in range(ADDRESSES_SHOWN + 3)))
    made = notice(group_view("default", many))
    assert made is not None
    assert made.status["addresses"][ADDRESSES_SHOWN - 1 :] == ["10.0.63.0-10.0.63.255", "and 3 more"]


@pytest.mark.spec("A28")
def test_exhausted_is_a_condition_that_says_of_which_family_and_moves_its_time_only_with_its_status() -> None:
    free = told(group_view("default", SPEC), notice(group_view("default", SPEC)))
    assert conditions(free)["Exhausted"]["status"] == "False"
    assert conditions(free)["Ready"]["lastTransitionTime"] == "2026-11-23T12:00:00Z"
    full = told(free, notice(free, FULL, later_s=60))
    exhausted = conditions(full)["Exhausted"]
    assert (exhausted["status"], exhausted["reason"]) == ("True", "PoolExhausted")
    assert exhausted["message"] == "no IPv4 address is free, some are in quarantine"
    assert exhausted["lastTransitionTime"] == "2026-11-23T12:01:00Z"
    assert conditions(full)["Ready"] == conditions(free)["Ready"]
    # Another sentence is no other status.
    rest = replace(FULL.families[Family.IPV4], quarantined=0)
    still = told(full, notice(full, replace(FULL, families={Family.IPV4: rest}), later_s=120))
    assert conditions(still)["Exhausted"]["message"] == "no IPv4 address is free"
    assert conditions(still)["Exhausted"]["lastTransitionTime"] == "2026-11-23T12:01:00Z"


@pytest.mark.spec("A28")
def test_what_is_said_already_is_not_said_again_and_what_others_say_stays() -> None:
    other = {"type": "example.com/Checked", "status": "True"}
    view = replace(group_view("default", SPEC), status={"conditions": [other], "theirs": 1})
    after = told(view, notice(view))
    assert conditions(after)[other["type"]] == other
    assert status(after)["theirs"] == 1
    assert notice(after, later_s=3600) is None
    # In another order, as somebody who applies conditions leaves them.
    turned = replace(after, status=status(after) | {"conditions": status(after)["conditions"][::-1]})
    assert notice(turned, later_s=3600) is None


@pytest.mark.spec("A8", "A28")
def test_a_refused_group_loses_what_it_cannot_give_and_is_told_once_why() -> None:
    good = told(group_view("default", SPEC), notice(group_view("default", SPEC)))
    made = notice(good, USED, REFUSED)
    assert made is not None
    assert [(e.type, e.reason, e.message) for e in made.events] == [("Warning", "ParseFailed", str(REFUSED))]
    bad = told(good, made)
    assert set(conditions(bad)) == {"Ready"}
    assert (conditions(bad)["Ready"]["status"], conditions(bad)["Ready"]["message"]) == ("False", str(REFUSED))
    assert not {"announce", "ipam", "addresses", "availableIPv4"} & set(status(bad))
    assert status(bad)["orphanedIPv4"] == 5
    fewer = replace(USED, families={**USED.families, Family.IPV4: FamilyUsage(held=1)})
    counted = notice(bad, fewer, REFUSED)
    assert counted is not None
    assert counted.events == ()
    assert set(counted.status) == {"allocatedIPv4", "quarantinedIPv4", "orphanedIPv4"}


# -- when ----------------------------------------------------------------------------------------------------------


class Told:
    """A cluster that takes notices, or answers with the errors given, in order."""

    def __init__(self, *errors: KubeError) -> None:
        self.errors = list(errors)
        self.views = {name: group_view(name, SPEC) for name in ("default", "other")}
        self.usage: dict[str, GroupUsage] = dict.fromkeys(self.views, USED)
        self.tries: list[tuple[float, str]] = []
        self.teller = GroupTeller(self, self._ask, AllocatorMetrics(), lambda: NOW)

    def group(self, name: str) -> ObjectView | None:
        return self.views.get(name)

    async def tell_group(self, notice: GroupNotice) -> None:
        name = notice.view.name
        self.tries.append((virtual_clock(), name))
        if self.errors:
            raise self.errors.pop(0)
        self.views[name] = told(self.views[name], notice)

    async def _ask(self) -> Mapping[str, GroupUsage]:
        asked, self.usage = self.usage, {}
        return asked

    def judge(self) -> None:
        """As the leader does, when it has read the groups."""
        accepted: dict[str, Group] = {name: group(name, SPEC) for name in self.views}
        self.teller.tell(list(self.views.values()), GroupVerdicts(accepted, {}, changed=False))

    def during(self, what: Any) -> list[tuple[float, str]]:
        async def scenario() -> None:
            running = asyncio.create_task(self.teller.run())
            await what()
            running.cancel()

        run_virtual(scenario())
        return self.tries


@pytest.mark.spec("A28")
def test_a_write_that_did_not_come_through_is_tried_again_later_each_time() -> None:
    cluster = Told(*[Unavailable("no answer")] * 4)

    async def what() -> None:
        cluster.judge()
        await asyncio.sleep(60)

    tries = cluster.during(what)
    assert [(at, name) for at, name in tries if name == "default"] == [
        (0.0, "default"),
        (2.0, "default"),
        (6.0, "default"),
    ]
    assert cluster.teller.untold == 0
    assert all(view.status for view in cluster.views.values())


@pytest.mark.spec("A28")
@pytest.mark.parametrize("error", [Conflict("another version"), NotFound("gone")])
def test_who_lost_a_race_waits_for_the_watch_and_writes_what_is_missing_then(error: KubeError) -> None:
    cluster = Told(error)

    async def what() -> None:
        cluster.judge()
        await asyncio.sleep(60)
        assert [name for _, name in cluster.tries] == ["default", "other"]
        assert cluster.views["default"].status is None
        # The winner's write comes with the watch: it took away what we had not written yet.
        cluster.views["default"] = replace(cluster.views["default"], resource_version="2")
        cluster.judge()
        await asyncio.sleep(60)

    cluster.during(what)
    assert [name for _, name in cluster.tries] == ["default", "other", "default"]
    assert cluster.views["default"].status


@pytest.mark.spec("A28")
def test_a_group_is_not_told_of_a_verdict_on_an_older_version_of_it() -> None:
    cluster = Told()

    async def what() -> None:
        cluster.judge()
        cluster.views["default"] = replace(cluster.views["default"], generation=2, resource_version="2")
        await asyncio.sleep(10)
        assert [name for _, name in cluster.tries] == ["other"]
        cluster.judge()
        await asyncio.sleep(10)

    cluster.during(what)
    assert [name for _, name in cluster.tries] == ["other", "default"]


@pytest.mark.spec("A28")
def test_what_changes_all_the_time_is_written_once_a_second_and_a_group_where_nothing_changes_never() -> None:
    cluster = Told()

    async def what() -> None:
        cluster.judge()
        for number in range(100):
            cluster.usage["default"] = GroupUsage({Family.IPV4: FamilyUsage(size=10, held=number)})
            cluster.teller.count()
            await asyncio.sleep(0.1)
        await asyncio.sleep(60)

    tries = cluster.during(what)
    assert [name for _, name in tries].count("other") == 1
    times = [at for at, name in tries if name == "default"]
    assert len(times) == 11
    assert min(later - earlier for earlier, later in pairwise(times)) >= 0.999
    assert status(cluster.views["default"])["allocatedIPv4"] == 99
