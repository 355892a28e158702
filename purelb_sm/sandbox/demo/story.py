"""The demo: the life of a few Services, told with the commands and outputs a user would see, every claim checked."""

from __future__ import annotations

import re
import shutil
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import TypeVar

from purelb_sm.domain.addresses import Address
from purelb_sm.domain.names import ANNOUNCING_V4, KUBE_LB0
from purelb_sm.kube.resources import EVENTS, SERVICES
from purelb_sm.sandbox.cluster.layout import NODE_INTERFACE
from purelb_sm.sandbox.demo.terminal import Terminal
from purelb_sm.sandbox.launcher import Done, NotInTime, Sandbox

T = TypeVar("T")

NAMESPACE = "test"
IN = ("-n", NAMESPACE)
FIRST = "echoserver-service"
PORT = 80
TAKEOVER_TIMEOUT_S = 20.0
"""A Lease of 10 s, a second to act, and the patience that a busy machine needs."""


class ClaimFailed(Exception):
    """Something that the demo claims was not so; it has been shown."""


class Story:
    """One telling. `tell` raises `ClaimFailed` at the first claim that does not hold."""

    def __init__(self, sandbox: Sandbox, terminal: Terminal) -> None:
        self._sandbox = sandbox
        self._terminal = terminal
        self._checked = 0
        self._announced_at = datetime.now(UTC)
        self._first_node = ""
        self._address: Address | None = None

    @property
    def checked(self) -> int:
        """How many claims were checked, and held."""
        return self._checked

    async def tell(self) -> None:
        await self._first_address()
        await self._requested_group()
        await self._routed_group()
        if self._sandbox.nodes:
            await self._reach_it()
            await self._booked()
            await self._node_dies()
        else:
            self._terminal.note("Left out, for want of network namespaces: nodes, traffic, failover.")
        await self._allocator_killed()
        await self._delete_and_ask()

    # The chapters.

    async def _first_address(self) -> None:
        self._terminal.heading("1. A Service of type LoadBalancer gets an address, and a node answers for it")
        await self._kubectl("create", "namespace", NAMESPACE)
        await self._kubectl(*IN, "create", "deployment", "echoserver", "--image=echoserver:1")
        await self._kubectl(
            *(*IN, "expose", "deployment", "echoserver", f"--name={FIRST}"),
            *(f"--port={PORT}", "--target-port=8080", "--type=LoadBalancer"),
        )
        self._address = await self._settled(FIRST, "AnnouncingLocal")
        self._announced_at = datetime.now(UTC)
        shown = await self._describe(FIRST)
        address = re.escape(str(self._address))
        self._claim("its address is the first of the group default", str(self._address) == "172.30.250.53", shown)
        for claim, pattern in (
            ("the annotations say who gave it", r"purelb\.io/allocated-by: PureLB\n"),
            ("… and from which group", r"purelb\.io/allocated-from: default\n"),
            ("the ingress is that address", rf"LoadBalancer Ingress: +{address} \(VIP\)\n"),
            (
                "an Event of the allocator says so",
                rf"Normal +IPAllocated +\S+ +purelb-allocator +Assigned IP {address} from pool default",
            ),
        ):
            self._claim(claim, re.search(pattern, shown) is not None, shown)
        if self._sandbox.nodes:
            self._claim_announced_locally(shown)

    def _claim_announced_locally(self, shown: str) -> None:
        annotation = re.search(rf"{re.escape(ANNOUNCING_V4)}: (\S+), {NODE_INTERFACE}\n", shown)
        self._claim("an annotation says which node announces it, and on which interface", bool(annotation), shown)
        node = annotation[1] if annotation else ""
        event = (
            rf"Normal +AnnouncingLocal +\S+ +purelb-lbnodeagent +"
            rf"Node {node} announcing {self._address} on interface {NODE_INTERFACE}"
        )
        self._claim("so does an Event of that node's agent", re.search(event, shown) is not None, shown)
        self._first_node = node

    async def _requested_group(self) -> None:
        self._terminal.heading("2. A Service that asks for a group gets an address of that group")
        await self._apply("servicetest.yaml")
        address = await self._settled("servicetest", "AnnouncingLocal")
        shown = await self._describe("servicetest")
        self._claim("it says that it came from localaddr", "purelb.io/allocated-from: localaddr\n" in shown, shown)
        event = f"Assigned IP {address} from pool localaddr"
        self._claim("and so does its Event", event in shown, shown)

    async def _routed_group(self) -> None:
        self._terminal.heading("3. A routed address is held by every node, on kube-lb0")
        await self._kubectl("get", "servicegroup", "virtualsub", "--namespace=purelb-system", "--output=yaml")
        await self._apply("routed.yaml")
        address = await self._settled("routed", "AnnouncingNonLocal", events=len(self._sandbox.nodes))
        shown = await self._describe("routed")
        for node in self._sandbox.nodes:
            event = f"Announcing {address} from node {node} interface {KUBE_LB0}"
            self._claim(f"an Event says that {node} announces it", event in shown, shown)
        for node in self._sandbox.nodes:
            namespace = self._sandbox.cluster.namespace_of(node)
            table = await self._run("ip", "-n", namespace, "-brief", "-4", "address", "show", "dev", KUBE_LB0)
            self._claim(f"{node} holds it", f" {address}/32 " in f" {table} ".replace("\n", " "), table)

    async def _reach_it(self) -> None:
        self._terminal.heading("4. A client on another machine reaches the addresses with TCP")
        answer = await self._connect(self._first_address_known)
        self._claim(f"{self._first_node} answers for {self._address}", answer == self._first_node, answer)
        routed = (await self._sandbox.ingress(NAMESPACE, "routed"))[0]
        answer = await self._connect(routed)
        self._claim(f"one of the nodes answers for {routed}", answer in self._sandbox.nodes, answer)

    async def _booked(self) -> None:
        """The nodes report at most once a second, so the book knows a moment later than everybody else."""
        address, node = str(self._first_address_known), self._first_node
        announced = re.compile(rf"{re.escape(node)} {NODE_INTERFACE} \(present")

        async def known() -> bool:
            return announced.search((await self._sandbox.purelb("who-had", address)).stdout) is not None

        await self._wait(f"the book to know that {node} announces {address}", known)
        self._announced_at = datetime.now(UTC)
        who = await self._purelb("who-had", address)
        self._claim("the book knows who has the address, and which node announces it", bool(announced.search(who)), who)

    async def _node_dies(self) -> None:
        address, node = self._first_address_known, self._first_node
        self._terminal.heading(f"5. {node}, which announces {address}, dies")
        self._terminal.note(f"{node} is cut off and its agent killed; nothing is said to the others.")
        await self._sandbox.power_off(node)

        async def elsewhere() -> str | None:
            answer = await self._sandbox.answering(address, PORT, 0.5)
            return answer if answer not in (None, node) else None

        async with self._terminal.waiting(f"another node to answer for {address}"):
            other = await self._wait("another node to take the address over", elsewhere, TAKEOVER_TIMEOUT_S)
        answer = await self._connect(address)
        self._claim(f"{other} answers now", answer == other, answer)

        async def annotated() -> bool:
            service = await self._sandbox.get(SERVICES, FIRST, NAMESPACE) or {}
            return str(service["metadata"]["annotations"].get(ANNOUNCING_V4)) == f"{other}, {NODE_INTERFACE}"

        await self._wait(f"the annotation to name {other}", annotated)
        column = f"--output=custom-columns=ANNOUNCING:.metadata.annotations.{_dotted(ANNOUNCING_V4)}"
        shown = await self._kubectl(*IN, "get", "service", FIRST, column)
        self._claim(f"the annotation names {other}", f"{other}, {NODE_INTERFACE}" in shown, shown)
        async with self._terminal.waiting(f"the Lease of {node} to run out"):
            lost = await self._purelb_until("history", f"--node={node}", shows=" lose ", timeout_s=TAKEOVER_TIMEOUT_S)
        self._claim(f"the book has {node} as lost", str(address) in lost, lost)

    async def _allocator_killed(self) -> None:
        self._terminal.heading("6. The allocator is killed and started again")
        await self._quiet()
        before, booked = await self._table(), await self._moves()
        allocator = self._sandbox.allocator
        assert allocator is not None
        self._terminal.command(["kill", "-9", str(allocator.pid)])
        await self._sandbox.kill_allocator()
        async with self._terminal.waiting("the allocator to lead again"):
            await self._sandbox.start_allocator()
        await self._quiet()
        after = await self._table()
        self._claim("no address has moved, and no Service was even written to", before == after, after)
        again = await self._moves()
        self._claim("and the book has no new move of a Service or address", again == booked, again)

    async def _delete_and_ask(self) -> None:
        address = self._first_address_known
        self._terminal.heading("7. The Service is deleted, and the book is asked what was")
        await self._kubectl(*IN, "delete", "service", FIRST)
        if self._sandbox.nodes:

            async def gone() -> bool:
                held = await self._sandbox.holders(address)
                return not held

            await self._wait(f"{address} to be gone from all living nodes", gone)
            self._claim(f"no living node holds {address} any more", True, "")
        history = await self._purelb_until("history", f"--service={NAMESPACE}/{FIRST}", shows="begin_release")
        moves = ("allocate", "announce", "withdraw", "begin_release")
        for move in [m for m in moves if self._sandbox.nodes or m != "announce"]:
            self._claim(f"the history has the move {move}", f" {move} " in history, history)
        who = await self._purelb("who-had", str(address), "--at", self._announced_at.isoformat(timespec="milliseconds"))
        self._claim("it is known who had the address then", f"{NAMESPACE}/{FIRST}" in who, who)
        if self._sandbox.nodes:
            self._claim("and which node announced it", f"{self._first_node} " in who, who)
        who = await self._purelb("who-had", str(address))
        self._claim("and that nobody has it now, nor can have it yet", "nobody" in who or "releasing" in who, who)
        verified = await self._purelb("verify")
        self._claim("no row of the history was changed or removed", "the chain holds" in verified, verified)

    # How it is told.

    @property
    def _first_address_known(self) -> Address:
        assert self._address is not None
        return self._address

    def _claim(self, claim: str, holds: bool, seen: str) -> None:
        if not holds:
            self._terminal.bad(claim, seen)
            raise ClaimFailed(claim)
        self._checked += 1
        self._terminal.good(claim)

    async def _wait(self, what: str, check: Callable[[], Awaitable[T]], timeout_s: float = 20.0) -> T:
        try:
            return await self._sandbox.until(what, check, timeout_s)
        except NotInTime as late:
            self._terminal.bad(what, str(late))
            raise ClaimFailed(what) from None

    async def _kubectl(self, *words: str) -> str:
        return self._show(["kubectl", *words], await self._sandbox.kubectl(*words, check=False))

    async def _purelb(self, *words: str) -> str:
        return self._show(["purelb", *words], await self._sandbox.purelb(*words, check=False))

    async def _purelb_until(self, *words: str, shows: str, timeout_s: float = 20.0) -> str:
        """What a command prints once it shows a word, since the book follows the cluster by a moment."""

        async def there() -> bool:
            return shows in (await self._sandbox.purelb(*words)).stdout

        await self._wait(f"the book to have the move {shows.strip()}", there, timeout_s)
        return await self._purelb(*words)

    async def _run(self, *argv: str) -> str:
        return self._show(argv, await self._sandbox.run(argv, check=False))

    def _show(self, argv: Sequence[str], done: Done) -> str:
        self._terminal.command(argv)
        self._terminal.output(done.stdout + done.stderr)
        if done.returncode != 0:
            self._terminal.bad("the command succeeds", f"exit status {done.returncode}")
            raise ClaimFailed(" ".join(argv))
        return done.stdout

    async def _apply(self, manifest: str) -> None:
        text = resources.files("purelb_sm.sandbox.demo").joinpath("manifests", manifest).read_text()
        file = self._sandbox.directory / manifest
        file.write_text(text)
        self._terminal.command(["cat", manifest])
        self._terminal.output(text)
        self._terminal.command(["kubectl", "apply", "-f", manifest])
        done = await self._sandbox.kubectl("apply", "-f", str(file))
        self._terminal.output(done.stdout)

    async def _describe(self, name: str) -> str:
        return await self._kubectl(*IN, "describe", "service", name)

    async def _settled(self, name: str, event: str, *, events: int = 1) -> Address:
        """The address of a Service, once it has one and its nodes have said that they announce it."""

        async def addressed() -> Address | None:
            found = await self._sandbox.ingress(NAMESPACE, name)
            return found[0] if found else None

        async def told(reason: str, times: int) -> bool:
            found = await self._sandbox.items(EVENTS, NAMESPACE)
            about = [e for e in found if e["involvedObject"]["name"] == name]
            return len([e for e in about if e["reason"] == reason]) >= times

        async def announced() -> bool:
            service = await self._sandbox.get(SERVICES, name, NAMESPACE) or {}
            annotations: dict[str, str] = service["metadata"].get("annotations") or {}
            annotated = event != "AnnouncingLocal" or ANNOUNCING_V4 in annotations
            return annotated and await told(event, events)

        address = await self._wait(f"{name} to have an address", addressed)
        await self._wait(f"the Event that {name} has an address", lambda: told("IPAllocated", 1))
        if self._sandbox.nodes:
            await self._wait(f"{name} to be announced", announced)
        assert address is not None
        return address

    async def _connect(self, address: Address) -> str:
        """What a client gets through the address, with curl or, where there is none, with bash."""
        enter = ["nsenter", f"--net=/run/netns/{self._sandbox.cluster.namespace_of('client')}"]
        if shutil.which("curl"):
            return (await self._run(*enter, "curl", "--silent", "--max-time", "5", f"http://{address}:{PORT}/")).strip()
        talk = f"exec 3<>/dev/tcp/{address}/{PORT}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; tail -n 1 <&3"
        return (await self._run(*enter, "bash", "-c", talk)).strip()

    async def _table(self) -> str:
        columns = "NAME:.metadata.name,ADDRESS:.status.loadBalancer.ingress[*].ip,VERSION:.metadata.resourceVersion"
        return await self._kubectl(*IN, "get", "services", f"--output=custom-columns={columns}")

    async def _moves(self) -> str:
        return (await self._sandbox.purelb("history", f"--namespace={NAMESPACE}", "--output=csv")).stdout

    async def _quiet(self) -> None:
        """Waits until nobody has written to a Service for a while."""
        seen: list[dict[str, str]] = []

        async def same_as_before() -> bool:
            items = await self._sandbox.items(SERVICES, NAMESPACE)
            seen.append({i["metadata"]["name"]: i["metadata"]["resourceVersion"] for i in items})
            return len(seen) > QUIET_LOOKS and all(one == seen[-1] for one in seen[-QUIET_LOOKS:])

        await self._wait("everything to be quiet", same_as_before)


QUIET_LOOKS = 25
"""How often in a row, every tenth of a second, nothing must have changed. A condition follows the book within 1 s."""


def _dotted(annotation: str) -> str:
    """The name of an annotation in a JSONPath."""
    return annotation.replace(".", "\\.")
