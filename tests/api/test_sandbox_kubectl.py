"""A real kubectl against the emulated API server: the commands of kubectl-requests.txt, and the manifests."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from purelb_sm.sandbox.apiserver import ApiServer, serve, write_kubeconfig

ROOT = Path(__file__).parents[2]
KUBECTL = shutil.which("kubectl", path=f"{os.environ.get('PATH', '')}:{ROOT / '.cache/bin'}")
DEADLINE_S = 30.0

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="no kubectl on the path or in .cache/bin (tools/install.sh)")

SERVICE = """
apiVersion: v1
kind: Service
metadata:
  name: ap
  namespace: demo
  annotations: {purelb.io/service-group: default}
spec:
  type: LoadBalancer
  selector: {app: ap}
  ports:
  - port: 80
    targetPort: 8080
"""


@dataclass
class Kubectl:
    """kubectl with a kubeconfig and a home of its own."""

    server: ApiServer
    environment: dict[str, str]
    folder: Path

    async def begin(self, *arguments: str) -> asyncio.subprocess.Process:
        assert KUBECTL is not None
        return await asyncio.create_subprocess_exec(
            KUBECTL,
            *arguments,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        process = await self.begin(*arguments)
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def __call__(self, line: str, *more: str) -> str:
        """Standard output of a command that must succeed without a word of complaint."""
        code, out, err = await self.run(*line.split(), *more)
        assert code == 0, f"kubectl {line}: {err}"
        assert not err, f"kubectl {line}: {err}"
        return out

    def file(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)


@pytest.fixture
async def kubectl(tmp_path: Path) -> AsyncIterator[Kubectl]:
    server = ApiServer()
    async with serve(server) as url:
        write_kubeconfig(tmp_path / "config", url)
        kept = {key: os.environ[key] for key in ("PATH",) if key in os.environ}
        environment = {**kept, "KUBECONFIG": str(tmp_path / "config"), "HOME": str(tmp_path)}
        command = Kubectl(server, environment, tmp_path)
        await command("create namespace demo")
        yield command


def status(address: str) -> str:
    return json.dumps({"status": {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"}]}}})


@pytest.mark.spec("D2")
class TestCommands:
    async def test_create_get_and_describe_a_load_balancer(self, kubectl: Kubectl) -> None:
        assert await kubectl("create service loadbalancer echo --tcp=80:8080 -n demo") == "service/echo created\n"
        every = await kubectl("get svc -A")
        assert every.splitlines()[0].split() == [
            *("NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE")
        ]
        assert "<pending>" in await kubectl("get svc echo -n demo")
        await kubectl("patch svc echo -n demo --subresource=status --type=merge -p", status("192.0.2.7"))
        wide = (await kubectl("get svc echo -n demo -o wide")).splitlines()
        assert "192.0.2.7" in wide[1]
        assert wide[1].split()[-1] == "app=echo"
        described = await kubectl("describe svc echo -n demo")
        assert "LoadBalancer Ingress:     192.0.2.7 (VIP)\n" in described
        assert "Events:                   <none>\n" in described

    async def test_describe_shows_events_in_order_with_their_component(self, kubectl: Kubectl) -> None:
        await kubectl("create service loadbalancer echo --tcp=80 -n demo")
        uid = await kubectl("get svc echo -n demo -o jsonpath={.metadata.uid}")
        for at, (reason, component) in enumerate(
            [("IPAllocated", "purelb-allocator"), ("AnnouncingLocal", "purelb-lbnodeagent")]
        ):
            when = f"2026-01-01T00:00:0{at}Z"
            about = {"apiVersion": "v1", "kind": "Service", "name": "echo", "namespace": "demo", "uid": uid}
            kubectl.server.create(
                {
                    "apiVersion": "v1",
                    "kind": "Event",
                    "metadata": {"name": f"echo.{9 - at}", "namespace": "demo"},
                    "involvedObject": about,
                    "reason": reason,
                    "message": f"message {at}",
                    "type": "Normal",
                    "count": 1,
                    "source": {"component": component},
                    "firstTimestamp": when,
                    "lastTimestamp": when,
                }
            )
        lines = (await kubectl("describe svc echo -n demo")).partition("Events:")[2].splitlines()[3:]
        assert [line.split()[1] for line in lines] == ["IPAllocated", "AnnouncingLocal"]
        assert [line.split()[3] for line in lines] == ["purelb-allocator", "purelb-lbnodeagent"]
        listed = await kubectl("get events -n demo")
        assert listed.splitlines()[0].split() == ["LAST", "SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]
        assert "service/echo" in listed

    async def test_expose_a_deployment(self, kubectl: Kubectl) -> None:
        await kubectl("create deployment echo --image=echo:1 -n demo")
        assert (await kubectl("get deployments -n demo")).splitlines()[1].split()[:2] == ["echo", "0/1"]
        await kubectl("expose deployment echo --port=80 --type=LoadBalancer -n demo")
        assert await kubectl("get svc echo -n demo -o jsonpath={.spec.selector}") == '{"app":"echo"}'

    async def test_apply_first_and_again_changed(self, kubectl: Kubectl) -> None:
        path = kubectl.file("svc.yaml", SERVICE)
        assert await kubectl("apply -f", path) == "service/ap created\n"
        assert await kubectl("apply -f", path) == "service/ap unchanged\n"
        kubectl.file("svc.yaml", SERVICE.replace("8080", "9090"))
        assert await kubectl("apply -f", path) == "service/ap configured\n"
        ports = json.loads(await kubectl("get svc ap -n demo -o jsonpath={.spec.ports}"))
        assert [p["targetPort"] for p in ports] == [9090]
        kubectl.file("svc.yaml", SERVICE.replace("  annotations: {purelb.io/service-group: default}\n", ""))
        await kubectl("apply -f", path)
        assert "purelb.io/service-group" not in await kubectl("get svc ap -n demo -o jsonpath={.metadata.annotations}")

    async def test_apply_server_side_takes_over_and_meets_conflicts(self, kubectl: Kubectl) -> None:
        path = kubectl.file("svc.yaml", SERVICE)
        await kubectl("apply -f", path)
        assert await kubectl("apply --server-side -f", path) == "service/ap serverside-applied\n"
        code, _, err = await kubectl.run(
            "apply",
            "--server-side",
            "--field-manager=other",
            "-f",
            kubectl.file("o.yaml", SERVICE.replace("8080", "1")),
        )
        assert code == 1
        assert 'conflict with "kubectl"' in err
        await kubectl("apply --server-side --force-conflicts --field-manager=other -f", str(kubectl.folder / "o.yaml"))
        assert await kubectl("get svc ap -n demo -o jsonpath={.spec.ports[0].targetPort}") == "1"

    async def test_a_typing_mistake_is_refused_by_the_server(self, kubectl: Kubectl) -> None:
        path = kubectl.file("svc.yaml", SERVICE.replace("targetPort", "tragetPort"))
        code, _, err = await kubectl.run("apply", "-f", path)
        assert code == 1
        assert 'strict decoding error: unknown field "spec.ports[0].tragetPort"' in err

    async def test_annotate_label_patch_and_edit(self, kubectl: Kubectl) -> None:
        await kubectl("create service loadbalancer echo --tcp=80:8080 -n demo")
        await kubectl("annotate svc echo -n demo purelb.io/service-group=g")
        await kubectl("label svc echo -n demo tier=web app-")
        await kubectl("patch svc echo -n demo -p", '{"spec":{"externalTrafficPolicy":"Local"}}')
        await kubectl("patch svc echo -n demo --type=json -p", '[{"op":"remove","path":"/metadata/labels/tier"}]')
        kubectl.environment["KUBE_EDITOR"] = "sed -i s/8080/8088/g"
        assert await kubectl("edit svc echo -n demo") == "service/echo edited\n"
        shown = json.loads(await kubectl("get svc echo -n demo -o json"))
        assert shown["metadata"]["annotations"] == {"purelb.io/service-group": "g"}
        assert "labels" not in shown["metadata"]
        assert shown["spec"]["externalTrafficPolicy"] == "Local"
        assert shown["spec"]["ports"][0]["targetPort"] == 8088

    async def test_get_watch_and_wait_see_the_address_come(self, kubectl: Kubectl) -> None:
        await kubectl("create service loadbalancer ap --tcp=80 -n demo")
        watching = await kubectl.begin("get", "svc", "ap", "-n", "demo", "-w")
        waiting = await kubectl.begin(
            *("wait", "svc/ap", "-n", "demo", "--for=jsonpath={.status.loadBalancer.ingress}", "--timeout=20s")
        )
        try:
            assert watching.stdout is not None
            async with asyncio.timeout(DEADLINE_S):
                await watching.stdout.readline()
                assert b"<pending>" in await watching.stdout.readline()
                await kubectl("patch svc ap -n demo --subresource=status --type=merge -p", status("192.0.2.7"))
                assert b"192.0.2.7" in await watching.stdout.readline()
                out, _ = await waiting.communicate()
            assert out == b"service/ap condition met\n"
        finally:
            watching.kill()
            await watching.communicate()

    async def test_delete_waits_for_the_finalizer(self, kubectl: Kubectl) -> None:
        await kubectl("create service loadbalancer echo --tcp=80 -n demo")
        assert "deleted" in await kubectl("delete svc echo -n demo")
        await kubectl("create service loadbalancer held --tcp=80 -n demo")
        await kubectl("patch svc held -n demo -p", '{"metadata":{"finalizers":["example.org/wait"]}}')
        deleting = await kubectl.begin("delete", "svc", "held", "-n", "demo", "--wait")
        async with asyncio.timeout(DEADLINE_S):
            while "deletionTimestamp" not in (kubectl.server.get("v1", "Service", "held", "demo") or {})["metadata"]:
                await asyncio.sleep(0.05)
        assert deleting.returncode is None
        await kubectl("patch svc held -n demo --type=merge -p", '{"metadata":{"finalizers":null}}')
        async with asyncio.timeout(DEADLINE_S):
            assert await deleting.wait() == 0
        await deleting.communicate()
        code, _, err = await kubectl.run("get", "svc", "held", "-n", "demo")
        assert (code, err) == (1, 'Error from server (NotFound): services "held" not found\n')

    async def test_delete_of_a_namespace_ends(self, kubectl: Kubectl) -> None:
        await kubectl("create service loadbalancer echo --tcp=80 -n demo")
        await kubectl("delete namespace demo")
        code, _, err = await kubectl.run("get", "namespace", "demo")
        assert code == 1
        assert "NotFound" in err

    async def test_version_leases_access_and_resources(self, kubectl: Kubectl) -> None:
        assert "Server Version: v1.36.2" in await kubectl("version")
        assert await kubectl("auth can-i create services") == "yes\n"
        assert "kubernetes-admin" in await kubectl("auth whoami")
        lease = {"name": "purelb-node-a", "namespace": "demo"}
        kubectl.server.create(
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": lease,
                "spec": {"holderIdentity": "a", "renewTime": "2026-01-01T00:00:00.000000Z"},
            }
        )
        assert (await kubectl("get lease -A")).splitlines()[1].split()[:3] == ["demo", "purelb-node-a", "a"]
        resources = await kubectl("api-resources --namespaced=true -o name")
        assert {"services", "leases.coordination.k8s.io", "endpointslices.discovery.k8s.io"} <= set(resources.split())
        assert "targetPort" in await kubectl("explain service.spec.ports")

    @pytest.mark.parametrize(
        "command",
        [
            "create configmap c --from-literal=a=b",
            "create secret generic s --from-literal=a=b",
            "create serviceaccount a",
            "create role r --verb=get --resource=services",
            "create rolebinding b --role=r --serviceaccount=demo:a",
            "create clusterrole r --verb=get,list --resource=nodes",
            "create clusterrolebinding b --clusterrole=r --user=u",
            "create job j --image=i:1",
            "create cronjob c --image=i:1 --schedule=@daily",
            "create poddisruptionbudget p --selector=app=x --min-available=1",
            "create quota q --hard=pods=2",
            "create priorityclass p --value=10",
            "create ingress i --rule=a.example/x=svc:80",
            "run pod --image=i:1",
        ],
    )
    async def test_what_kubectl_makes_itself_arrives_whole(self, kubectl: Kubectl, command: str) -> None:
        """kubectl sends these as protobuf; what it would have sent as JSON says what has to arrive."""
        meant = json.loads(await kubectl(f"-n demo {command} --dry-run=client -o json"))
        stored = json.loads(await kubectl(f"-n demo {command} -o json"))
        assert not lost(without_empty(meant), stored)
        kind = meant["kind"].lower()
        assert meant["metadata"]["name"] in await kubectl(f"-n demo get {kind}")


def without_empty(value: object) -> object:
    if isinstance(value, dict):
        kept = {k: without_empty(v) for k, v in value.items()}
        return {k: v for k, v in kept.items() if v not in (None, {}, [], "")}
    return [without_empty(v) for v in value] if isinstance(value, list) else value


def lost(meant: object, stored: object, path: str = "") -> list[str]:
    """What was meant and is not stored."""
    if isinstance(meant, dict) and isinstance(stored, dict):
        return [each for k, v in meant.items() for each in lost(v, stored.get(k), f"{path}.{k}")]
    if isinstance(meant, list) and isinstance(stored, list) and len(meant) == len(stored):
        pairs = enumerate(zip(meant, stored, strict=True))
        return [each for i, (one, other) in pairs for each in lost(one, other, f"{path}[{i}]")]
    return [] if meant == stored else [f"{path}: {meant!r} became {stored!r}"]


@pytest.mark.spec("D2")
class TestManifests:
    async def test_the_base_is_accepted_twice_without_a_change(self, kubectl: Kubectl) -> None:
        first = await kubectl("apply -k", str(ROOT / "deploy/base"))
        assert "customresourcedefinition.apiextensions.k8s.io/servicegroups.purelb.io created" in first
        again = await kubectl("apply -k", str(ROOT / "deploy/base"))
        assert all(line.endswith(" unchanged") for line in again.splitlines()), again

    async def test_groups_are_known_by_short_names_and_columns(self, kubectl: Kubectl) -> None:
        await kubectl("apply -k", str(ROOT / "deploy/crds"))
        await kubectl("create namespace purelb-system")
        await kubectl("apply -k", str(ROOT / "deploy/samples"))
        for name in ("sg", "sgs", "servicegroups", "servicegroups.v1.purelb.io", "servicegroups.v2.purelb.io"):
            shown = await kubectl(f"get {name} -A")
            assert "default" in shown
            assert shown.splitlines()[0].split()[:2] == ["NAMESPACE", "NAME"]
        assert "addresses" in await kubectl("explain sg.spec")
        one = json.loads(await kubectl("get servicegroups.v1.purelb.io default -n purelb-system -o json"))
        assert one["apiVersion"] == "purelb.io/v1"

    async def test_deleting_a_definition_deletes_its_objects(self, kubectl: Kubectl) -> None:
        await kubectl("apply -k", str(ROOT / "deploy/crds"))
        await kubectl("create namespace purelb-system")
        await kubectl("apply -k", str(ROOT / "deploy/samples"))
        await kubectl("delete -k", str(ROOT / "deploy/crds"))
        code, _, err = await kubectl.run("get", "sg", "-A")
        assert code == 1
        # By its cache of discovery kubectl may still know the kind.
        assert "the server doesn't have a resource type" in err or "could not find the requested resource" in err
