"""`kubectl describe service` after each example of PureLB's page on Services, line by line (spec A4).

What depends on the cluster (cluster IPs, node ports, nodes, ages) is a pattern. Where kubectl writes a line otherwise
than it did when the page was written, it is as kubectl writes it now: an ingress carries `(VIP)`, and a wished address
stands under `Desired LoadBalancer IP`.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Any

import pytest

from purelb_sm.kube.resources import EVENTS, SERVICE_GROUPS, SERVICES, Resource
from purelb_sm.sandbox.cluster.layout import NODE_INTERFACE
from purelb_sm.sandbox.launcher import Options, Sandbox
from tests.e2e.conftest import Start

pytestmark = pytest.mark.root

NAMESPACE = "servicetest"
IP, PORT, NODE, AGE = r"\d+\.\d+\.\d+\.\d+", r"\d+", r"node\d", r"\S+(?: \(x\d+ over \S+\))?"

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: echoserver, labels: {app: echoserver}}
spec:
  selector: {matchLabels: {app: echoserver}}
  template:
    metadata: {labels: {app: echoserver}}
    spec: {containers: [{name: echoserver, image: echoserver}]}
"""

SERVICETEST = """
apiVersion: v1
kind: Service
metadata:
  annotations:
    purelb.io/service-group: localaddr
  labels:
    app: echoserver
  name: servicetest
  namespace: servicetest
spec:
  externalTrafficPolicy: Cluster
  ipFamilies:
  - IPv4
  ipFamilyPolicy: SingleStack
  ports:
  - port: 80
    protocol: TCP
    targetPort: 8080
  selector:
    app: echoserver
  sessionAffinity: None
  type: LoadBalancer
"""

SPECIFIC = """
apiVersion: v1
kind: Service
metadata:
  annotations:
    purelb.io/service-group: virtualsub
  labels:
    app: echoserver
  name: specificaddress
  namespace: servicetest
spec:
  externalTrafficPolicy: Cluster
  ports:
  - port: 80
    protocol: TCP
    targetPort: 8080
  selector:
    app: echoserver
  sessionAffinity: None
  type: LoadBalancer
  loadBalancerIP: 172.31.1.225
"""

ENDPOINTS = """
apiVersion: v1
kind: Service
metadata:
  annotations:
    purelb.io/service-group: virtualsub
  labels:
    app: echoserver
  name: endpoints
  namespace: servicetest
spec:
  externalTrafficPolicy: Local
  ipFamilies:
  - IPv4
  ipFamilyPolicy: SingleStack
  ports:
  - port: 80
    protocol: TCP
    targetPort: 8080
  selector:
    app: echoserver
  sessionAffinity: None
  type: LoadBalancer
"""


def described(text: str) -> dict[str, list[str]]:
    """The fields of `kubectl describe`, each with its lines; the rows of the table of Events under `Events`."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        head = re.match(r"(\S[^:]*): *(.*)$", line)
        if head:
            name = head[1]
            found.setdefault(name, [])
        value = (head[2] if head else line).strip()
        if value:
            found[name].append(re.sub(r"  +", "  ", value))
    return found


def common(name: str, group: str, address: str, *, policy: str = "Cluster") -> dict[str, list[str]]:
    """The lines that every example of the page has."""
    return {
        "Name": [name],
        "Namespace": [NAMESPACE],
        "Labels": ["app=echoserver"],
        "Selector": ["app=echoserver"],
        "Type": ["LoadBalancer"],
        "IP Family Policy": ["SingleStack"],
        "IP Families": ["IPv4"],
        "IP": [IP],
        "LoadBalancer Ingress": [rf"{re.escape(address)} \(VIP\)"],
        "Port": ["<unset>  80/TCP"],
        "TargetPort": ["8080/TCP"],
        "NodePort": [rf"<unset>  {PORT}/TCP"],
        "Session Affinity": ["None"],
        "External Traffic Policy": [policy],
    }


def branded(group: str, *, asked: bool = True, local: bool = True) -> list[str]:
    """In the order in which kubectl sorts them. `pool-type` is PureLB's, of later than the page."""
    return [
        "purelb.io/allocated-by: PureLB",
        f"purelb.io/allocated-from: {group}",
        *([rf"purelb.io/announcing-IPv4: {NODE}, {NODE_INTERFACE}"] if local else []),
        r"purelb.io/pool-type: (local|remote)",
        *([f"purelb.io/service-group: {group}"] if asked else []),
    ]


def event(kind: str, reason: str, component: str, message: str) -> str:
    return rf"{kind}  {reason}  {AGE}  {component}  {message}"


def allocated(address: str, group: str) -> str:
    return event("Normal", "IPAllocated", "purelb-allocator", f"Assigned IP {re.escape(address)} from pool {group}")


def announced_locally(address: str) -> str:
    text = f"Node {NODE} announcing {re.escape(address)} on interface {NODE_INTERFACE}"
    return event("Normal", "AnnouncingLocal", "purelb-lbnodeagent", text)


def announced_by(node: str, address: str) -> str:
    text = f"Announcing {re.escape(address)} from node {node} interface kube-lb0"
    return event("Normal", "AnnouncingNonLocal", "purelb-lbnodeagent", text)


def compare(shown: dict[str, list[str]], wanted: dict[str, list[str]], events: list[str]) -> None:
    for name, lines in wanted.items():
        found = shown.get(name, [])
        assert len(found) == len(lines), f"{name}: {found}"
        for line, pattern in zip(found, lines, strict=True):
            assert re.fullmatch(pattern, line), f"{name}: {line!r} is not {pattern!r}"
    heads, rule, *rows = shown["Events"]
    assert heads.split() == ["Type", "Reason", "Age", "From", "Message"]
    assert set(rule) == {"-", " "}
    for pattern in events:
        assert sum(re.fullmatch(pattern, row) is not None for row in rows) == 1, f"{pattern!r} in {rows}"
    left = [row for row in rows if not any(re.fullmatch(pattern, row) for pattern in events)]
    assert not left, left


class Page:
    """The sandbox, and the page's commands."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    async def describe(self, name: str, *reasons: str) -> dict[str, list[str]]:
        """Once Events with these reasons are there, each as often as it stands here, and the last word is written."""

        async def told() -> bool:
            events = await self.sandbox.items(EVENTS, NAMESPACE)
            found = [e["reason"] for e in events if e["involvedObject"]["name"] == name]
            return all(found.count(reason) >= reasons.count(reason) for reason in reasons)

        await self.sandbox.until(f"{name} to have the Events {', '.join(reasons)}", told)
        if "AnnouncingLocal" in reasons:

            async def annotated() -> bool:
                service = await self.sandbox.get(SERVICES, name, NAMESPACE) or {}
                return "purelb.io/announcing-IPv4" in service["metadata"]["annotations"]

            await self.sandbox.until(f"{name} to say who announces it", annotated)
        return described((await self.sandbox.kubectl("-n", NAMESPACE, "describe", "service", name)).stdout)

    async def apply(self, manifest: str) -> None:
        await self.sandbox.kubectl("-n", NAMESPACE, "apply", "-f", "-", stdin=manifest)

    async def endpoints(self, service: str, *nodes: str) -> None:
        """Ready endpoints of a Service, one on each of these nodes."""
        slices = Resource("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
        each: list[dict[str, Any]] = [
            {"addresses": [f"10.129.1.{number}"], "conditions": {"ready": True}, "nodeName": node}
            for number, node in enumerate(nodes, 70)
        ]
        await self.sandbox.apply(
            {
                "apiVersion": slices.api_version,
                "kind": slices.kind,
                "metadata": {
                    "name": f"{service}-1",
                    "namespace": NAMESPACE,
                    "labels": {"kubernetes.io/service-name": service},
                },
                "addressType": "IPv4",
                "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
                "endpoints": each,
            }
        )


@pytest.fixture
async def page(start_sandbox: Start) -> Page:
    sandbox = await start_sandbox(Options(nodes=3))
    await sandbox.kubectl("create", "namespace", NAMESPACE)
    return Page(sandbox)


@pytest.mark.spec("A4", "C8", "C9")
async def test_describe_shows_what_the_page_shows(page: Page) -> None:
    await expose_with_the_default_group(page)
    await a_group_is_asked_for(page)
    await an_address_is_asked_for(page)
    await nodes_with_endpoints_only(page)


async def expose_with_the_default_group(page: Page) -> None:
    await page.apply(DEPLOYMENT)
    await page.sandbox.kubectl(
        *("-n", NAMESPACE, "expose", "deployment", "echoserver", "--name=echoserver-service"),
        *("--port=80", "--target-port=8080", "--type=LoadBalancer"),
    )
    shown = await page.describe("echoserver-service", "IPAllocated", "AnnouncingLocal")
    wanted = common("echoserver-service", "default", "172.30.250.53")
    wanted |= {"Annotations": branded("default", asked=False), "Endpoints": ["<none>"]}
    compare(shown, wanted, [allocated("172.30.250.53", "default"), announced_locally("172.30.250.53")])
    said = re.search(rf"({NODE}), {NODE_INTERFACE}", shown["Annotations"][2])
    assert said is not None
    assert f"Node {said[1]} announcing" in "".join(shown["Events"])


async def a_group_is_asked_for(page: Page) -> None:
    await page.apply(SERVICETEST)
    await page.endpoints("servicetest", "node1", "node2", "node3")
    shown = await page.describe("servicetest", "IPAllocated", "AnnouncingLocal")
    wanted = common("servicetest", "localaddr", "172.30.250.100")
    wanted["Endpoints"] = [r"10\.129\.1\.70:8080,10\.129\.1\.71:8080,10\.129\.1\.72:8080"]
    # kubectl apply leaves its own annotation; describe does not show that one.
    wanted["Annotations"] = branded("localaddr")
    compare(shown, wanted, [allocated("172.30.250.100", "localaddr"), announced_locally("172.30.250.100")])


async def an_address_is_asked_for(page: Page) -> None:
    await page.apply(SPECIFIC)
    address, nodes = "172.31.1.225", page.sandbox.nodes
    shown = await page.describe("specificaddress", "IPAllocated", *["AnnouncingNonLocal"] * len(nodes))
    wanted = common("specificaddress", "virtualsub", address)
    wanted |= {"Annotations": branded("virtualsub", local=False), "Desired LoadBalancer IP": [re.escape(address)]}
    kinds = ("ConfigurationWarning", "DeprecationWarning")
    warnings = [event("Warning", kind, "purelb-allocator", ".*") for kind in kinds]
    events = [allocated(address, "virtualsub"), *(announced_by(node, address) for node in nodes), *warnings]
    compare(shown, wanted, events)


async def nodes_with_endpoints_only(page: Page) -> None:
    await page.endpoints("endpoints", "node1", "node3")
    await page.apply(ENDPOINTS)
    shown = await page.describe("endpoints", "IPAllocated", "AnnouncingNonLocal", "AnnouncingNonLocal")
    wanted = common("endpoints", "virtualsub", "172.31.1.0", policy="Local")
    wanted |= {"Annotations": branded("virtualsub", local=False), "HealthCheck NodePort": [PORT]}
    wanted["Endpoints"] = [r"10\.129\.1\.70:8080,10\.129\.1\.71:8080"]
    announced = [announced_by(node, "172.31.1.0") for node in ("node1", "node3")]
    compare(shown, wanted, [allocated("172.31.1.0", "virtualsub"), *announced])
    # "If the scale of the application changes, the number of nodes advertised will change."
    await page.endpoints("endpoints", "node2")

    async def moved() -> bool:
        return sorted(await page.sandbox.holders(ip_address("172.31.1.0"))) == ["node2"]

    await page.sandbox.until("node2 alone to hold the address", moved)


@pytest.mark.spec("A27")
async def test_without_endpoints_and_node_ports_an_address_is_announced_for_tcp_and_udp(page: Page) -> None:
    sandbox = page.sandbox
    ports = [{"name": p.lower(), "port": 53, "targetPort": 53, "protocol": p} for p in ("TCP", "UDP")]
    await sandbox.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "4dns", "namespace": NAMESPACE},
            "spec": {"type": "LoadBalancer", "ports": ports, "allocateLoadBalancerNodePorts": False},
        }
    )
    shown = await page.describe("4dns", "IPAllocated", "AnnouncingLocal")
    assert "NodePort" not in shown
    assert shown["Port"] == ["tcp  53/TCP", "udp  53/UDP"]
    assert shown["LoadBalancer Ingress"] == ["172.30.250.53 (VIP)"]
    holders = await sandbox.holders(ip_address("172.30.250.53"))
    assert len(holders) == 1

    async def counted() -> bool:
        group = await sandbox.get(SERVICE_GROUPS, "default", "purelb-system") or {}
        return bool(group.get("status", {}).get("allocatedIPv4") == 1)

    await sandbox.until("the group to count it", counted)
