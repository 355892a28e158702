"""Write purelb_sm/sandbox/apiserver/data/builtin_types.json: the fields of the built-in kinds that the sandbox stores.

The sandbox may not import the kubernetes package, so what it needs of it (names and types of fields) is kept as data.
Run `python tools/builtin_schemas.py` after an upgrade of the kubernetes package and look at the difference.
"""

import json
import re
from pathlib import Path

from kubernetes import client

OUT = Path(__file__).parents[1] / "purelb_sm/sandbox/apiserver/data/builtin_types.json"

ROOTS = """
CoreV1Event V1Binding V1ConfigMap V1Endpoints V1LimitRange V1Namespace V1Node V1PersistentVolume
V1PersistentVolumeClaim V1Pod V1PodTemplate V1ReplicationController V1ResourceQuota V1Secret V1Service V1ServiceAccount
V1ControllerRevision V1DaemonSet V1Deployment V1ReplicaSet V1StatefulSet
V1EndpointSlice V1Lease V1IngressClass V1Ingress V1NetworkPolicy V1PodDisruptionBudget V1PriorityClass
V1ClusterRole V1ClusterRoleBinding V1Role V1RoleBinding
V1Job V1CronJob V2HorizontalPodAutoscaler V1StorageClass V1RuntimeClass
V1CustomResourceDefinition V1APIService V1ValidatingWebhookConfiguration V1MutatingWebhookConfiguration
"""

# A CRD schema is recursive and carries x-kubernetes-… keys that the models spell their own way: it is kept open.
OPEN = {"V1JSONSchemaProps"}
SCALARS = {"str", "int", "bool", "float", "datetime", "object", "bytearray", "date", "bytes"}


def short(name: str) -> str:
    return name.removeprefix("Core")


def reference(kind: str, seen: list[str]) -> str:
    """The type of a field in our notation: a scalar, `[]X`, `{}X` or the name of another definition."""
    if match := re.fullmatch(r"[Ll]ist\[(.*)\]", kind):
        return "[]" + reference(match[1], seen)
    if match := re.fullmatch(r"[Dd]ict[\[(]str, (.*)[\])]", kind):
        return "{}" + reference(match[1], seen)
    if kind in SCALARS:
        return {"datetime": "time", "object": "any", "bytearray": "str", "bytes": "str", "date": "time"}.get(kind, kind)
    if kind in OPEN:
        return "any"
    seen.append(kind)
    return short(kind)


def main() -> None:
    pending = ROOTS.split()
    definitions: dict[str, dict[str, str]] = {}
    while pending:
        name = pending.pop()
        if short(name) in definitions:
            continue
        model = getattr(client, name)
        fields = {}
        for attribute, key in model.attribute_map.items():
            # The models rename what pydantic itself uses (`schema` is `var_schema` there).
            field = next(f for f in model.model_fields.items() if key in (f[0], f[1].serialization_alias))[1]
            required = "!" if field.is_required() else ""
            fields[key] = reference(model.openapi_types[attribute], pending) + required
        definitions[short(name)] = dict(sorted(fields.items()))
    lines = [f" {json.dumps(name)}: {json.dumps(fields)}" for name, fields in sorted(definitions.items())]
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
