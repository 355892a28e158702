"""Write purelb_sm/sandbox/apiserver/data/builtin_types.json: what the built-in kinds look like.

The emulated API server has to know the fields of each kind, which of them are printed when they are empty, how lists
merge in a strategic merge patch, and the protobuf numbers of what kubectl sends. All of that stands in the tags of the
Go structs, which every Go program carries for reflection; this reads them out of the kubectl that the tests use. Run
`python tools/builtin_types.py [KUBECTL]` after an upgrade of kubectl and look at the difference.

Layout of the type data: Go's internal/abi (Type, StructType, Name), 64 bit, little-endian, not position independent.
"""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "purelb_sm/sandbox/apiserver/data/builtin_types.json"

# Kinds by the package of their Go type, below k8s.io/api or k8s.io/apimachinery/pkg/apis.
ROOTS = """
core/v1 Namespace Service ConfigMap Secret ServiceAccount ResourceQuota Event Binding Endpoints LimitRange Node
core/v1 PersistentVolume PersistentVolumeClaim Pod PodTemplate ReplicationController
apps/v1 Deployment DaemonSet ReplicaSet StatefulSet ControllerRevision
batch/v1 Job CronJob
autoscaling/v2 HorizontalPodAutoscaler
rbac/v1 Role RoleBinding ClusterRole ClusterRoleBinding
networking/v1 Ingress IngressClass NetworkPolicy
discovery/v1 EndpointSlice
policy/v1 PodDisruptionBudget
scheduling/v1 PriorityClass
storage/v1 StorageClass
node/v1 RuntimeClass
coordination/v1 Lease
admissionregistration/v1 ValidatingWebhookConfiguration MutatingWebhookConfiguration
authorization/v1 SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview
authentication/v1 SelfSubjectReview TokenReview TokenRequest
meta/v1 DeleteOptions Condition
"""
# kubectl does not know this kind as a Go type; the fields are those of its reference page. A schema is recursive and
# has keys of its own: it is left open.
DEFINITIONS = """
CustomResourceDefinition metadata:meta/v1.ObjectMeta:o spec:CustomResourceDefinitionSpec \
  status:CustomResourceDefinitionStatus:o
CustomResourceDefinitionSpec group:string names:CustomResourceDefinitionNames scope:string \
  versions:[]CustomResourceDefinitionVersion conversion:CustomResourceConversion:op preserveUnknownFields:bool:o
CustomResourceDefinitionNames plural:string singular:string:o shortNames:[]string:o kind:string listKind:string:o \
  categories:[]string:o
CustomResourceDefinitionVersion name:string served:bool storage:bool deprecated:bool:o deprecationWarning:string:op \
  schema:CustomResourceValidation:op subresources:CustomResourceSubresources:op \
  additionalPrinterColumns:[]CustomResourceColumnDefinition:o selectableFields:[]SelectableField:o
CustomResourceValidation openAPIV3Schema:raw:op
CustomResourceSubresources status:raw:op scale:CustomResourceSubresourceScale:op
CustomResourceSubresourceScale specReplicasPath:string statusReplicasPath:string labelSelectorPath:string:op
CustomResourceColumnDefinition name:string type:string format:string:o description:string:o priority:int:o \
  jsonPath:string
SelectableField jsonPath:string
CustomResourceConversion strategy:string webhook:raw:op
CustomResourceDefinitionStatus conditions:[]CustomResourceDefinitionCondition acceptedNames:CustomResourceDefinitionNames \
  storedVersions:[]string observedGeneration:int:o
CustomResourceDefinitionCondition type:string status:string lastTransitionTime:time:oz reason:string:o message:string:o \
  observedGeneration:int:o
"""
# Types with a JSON form of their own.
SPECIAL = {
    "k8s.io/apimachinery/pkg/apis/meta/v1.Time": "time",
    "k8s.io/apimachinery/pkg/apis/meta/v1.MicroTime": "microtime",
    "k8s.io/apimachinery/pkg/apis/meta/v1.Duration": "duration",
    "k8s.io/apimachinery/pkg/apis/meta/v1.FieldsV1": "raw",
    "k8s.io/apimachinery/pkg/util/intstr.IntOrString": "intstr",
    "k8s.io/apimachinery/pkg/api/resource.Quantity": "quantity",
    "k8s.io/apimachinery/pkg/runtime.RawExtension": "raw",
}
BOOL, INT, INTS, FLOATS, MAP, POINTER, SLICE, STRING, STRUCT = 1, 2, range(2, 12), (13, 14), 21, 22, 23, 24, 25


class Program:
    """The type data of a Go program."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.sections = dict(self._sections())
        # Offsets of types are told from the start of the read-only data.
        self.types = self.sections[".rodata"][0]

    def _sections(self) -> Iterator[tuple[str, tuple[int, int, int]]]:
        """name -> (address, offset in the file, size)"""
        at = struct.unpack_from("<Q", self.data, 0x28)[0]
        size, count, names = struct.unpack_from("<HHH", self.data, 0x3A)
        heads = [struct.unpack_from("<IIQQQQ", self.data, at + i * size) for i in range(count)]
        for name, _, _, address, offset, length in heads:
            start = heads[names][4] + name
            yield self.data[start : self.data.index(b"\0", start)].decode(), (address, offset, length)

    def at(self, address: int) -> int:
        for base, offset, size in self.sections.values():
            if base and base <= address < base + size:
                return address - base + offset
        raise ValueError(hex(address))

    def read(self, form: str, address: int) -> tuple[int, ...]:
        return struct.unpack_from("<" + form, self.data, self.at(address))

    def name(self, address: int) -> tuple[str, str]:
        """(name, tag) of Go's encoding of a name."""
        at = self.at(address)
        flags = self.data[at]
        text, at = self._text(at + 1)
        return text, self._text(at)[0] if flags & 2 else ""

    def _text(self, at: int) -> tuple[str, int]:
        length = shift = 0
        while True:
            byte = self.data[at]
            length |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return self.data[at : at + length].decode(), at + length

    def kind(self, address: int) -> int:
        return self.read("B", address + 23)[0] & 31

    def title(self, address: int) -> str:
        """`import/path.Name` of a named type, `` of others."""
        if not self.read("B", address + 20)[0] & 1:
            return ""
        extra = {STRUCT: 80, POINTER: 56, SLICE: 56, MAP: 112}.get(self.kind(address), 48)
        package = self.name(self.types + self.read("i", address + extra)[0])[0]
        name = self.name(self.types + self.read("i", address + 40)[0])[0].lstrip("*")
        return f"{package}.{name.rpartition('.')[2]}"

    def structs(self) -> dict[str, int]:
        """Every named struct that a pointer type leads to."""
        _, offset, size = self.sections[".typelink"]
        found = {}
        for at in range(0, size, 4):
            address = self.types + struct.unpack_from("<i", self.data, offset + at)[0]
            if self.kind(address) == POINTER:
                target = self.read("Q", address + 48)[0]
                if self.kind(target) == STRUCT and (title := self.title(target)):
                    found[title] = target
        return found

    def fields(self, address: int) -> Iterator[tuple[str, int, str]]:
        """(name, type, tag)"""
        first, count = self.read("QQ", address + 56)
        for i in range(count):
            name, kind, _ = self.read("QQQ", first + 24 * i)
            yield self.name(name)[0], kind, self.name(name)[1]


def short(title: str) -> str:
    return title.removeprefix("k8s.io/api/").removeprefix("k8s.io/apimachinery/pkg/apis/")


def notation(program: Program, kind: int, pending: list[int]) -> str:
    """The type of a field: a scalar, `[]X` a list, `{}X` a map, or the name of another struct."""
    title = program.title(kind)
    if title in SPECIAL:
        return SPECIAL[title]
    number = program.kind(kind)
    if number == POINTER:
        return notation(program, program.read("Q", kind + 48)[0], pending)
    if number == SLICE:
        item = program.read("Q", kind + 48)[0]
        return "bytes" if program.kind(item) == 8 else "[]" + notation(program, item, pending)
    if number == MAP:
        return "{}" + notation(program, program.read("QQ", kind + 48)[1], pending)
    if number == STRUCT:
        pending.append(kind)
        return short(title)
    return {BOOL: "bool", STRING: "string"}.get(number) or ("int" if number in INTS else "float")


def field(program: Program, kind: int, tag: str, pending: list[int]) -> list[object]:
    """[JSON name, protobuf number, type, flags, merge key]: o omitempty, z omitzero, p pointer, i inline."""
    number = re.search(r'protobuf:"\w+,(\d+)', tag)
    name, *options = (re.search(r'json:"([^"]*)"', tag) or ["", ""])[1].split(",")
    flags = "o" * ("omitempty" in options) + "z" * ("omitzero" in options)
    flags += "p" * (program.kind(kind) == POINTER) + "i" * (not name)
    row = [name, int(number[1]) if number else 0, notation(program, kind, pending), flags]
    if "merge" in (re.search(r'patchStrategy:"([^"]*)"', tag) or ["", ""])[1].split(","):
        row.append((re.search(r'patchMergeKey:"(\w*)', tag) or ["", ""])[1])
    return row


def definitions() -> dict[str, list[list[object]]]:
    made = {}
    package = "apiextensions/v1."
    for line in DEFINITIONS.replace("\\\n", "").split("\n"):
        name, *fields = line.split() or [""]
        rows = []
        for each in fields:
            key, kind, *flags = each.split(":")
            prefix = kind[:2] if kind[:2] in ("[]", "{}") else ""
            bare = kind.removeprefix(prefix)
            rows.append([key, 0, prefix + (package + bare if bare[0].isupper() else bare), "".join(flags)])
        if name:
            made[package + name] = rows
    return made


def main() -> None:
    program = Program(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / ".cache/bin/kubectl")
    known = {short(title): address for title, address in program.structs().items()}
    pending = [
        known[f"{package}.{name}"] for package, *names in map(str.split, ROOTS.strip().split("\n")) for name in names
    ]
    messages: dict[str, list[list[object]]] = definitions()
    while pending:
        address = pending.pop()
        title = short(program.title(address))
        if title not in messages:
            # The embedded TypeMeta (kind and apiVersion) belongs to every object and is known without.
            fields = [f for f in program.fields(address) if "json:" in f[2] and f[0] != "TypeMeta"]
            messages[title] = [field(program, kind, tag, pending) for _, kind, tag in fields]
    lines = [f" {json.dumps(name)}: {json.dumps(fields)}" for name, fields in sorted(messages.items())]
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
