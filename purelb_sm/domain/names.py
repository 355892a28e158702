"""The names by which the cluster and we know things. One place, so that nothing is spelled twice."""

from __future__ import annotations

from typing import Final

API_GROUP: Final = "purelb.io"
INSTALL_NAMESPACE: Final = "purelb-system"
LOAD_BALANCER_CLASS: Final = "purelb.io/purelb"

PREFIX: Final = "purelb.io/"
BRAND: Final = "PureLB"
ALLOCATED_BY: Final = PREFIX + "allocated-by"
ALLOCATED_FROM: Final = PREFIX + "allocated-from"
POOL_TYPE: Final = PREFIX + "pool-type"
SERVICE_GROUP: Final = PREFIX + "service-group"
ADDRESSES: Final = PREFIX + "addresses"
ALLOW_SHARED_IP: Final = PREFIX + "allow-shared-ip"
ALLOW_LOCAL: Final = PREFIX + "allow-local"
RE_EVALUATE: Final = PREFIX + "re-evaluate"
MULTI_POOL: Final = PREFIX + "multi-pool"
NODE_AFFINITY: Final = PREFIX + "node-affinity"
SERVICE_ENDPOINTS: Final = "service-endpoints"
ANNOUNCING_V4: Final = PREFIX + "announcing-IPv4"
ANNOUNCING_V6: Final = PREFIX + "announcing-IPv6"
SUBNETS: Final = PREFIX + "subnets"
HEARTBEAT: Final = PREFIX + "heartbeat"
DRAINING: Final = PREFIX + "draining"
DRAIN: Final = PREFIX + "drain"
MACS: Final = PREFIX + "macs"
HISTORY_HEAD: Final = PREFIX + "history-head"

# Annotations that we write on a Service; all go when it stops being ours.
OURS: Final = (ALLOCATED_BY, ALLOCATED_FROM, POOL_TYPE, ANNOUNCING_V4, ANNOUNCING_V6)

CONDITION_ALLOCATED: Final = PREFIX + "Allocated"
CONDITION_ANNOUNCED: Final = PREFIX + "Announced"

ALLOCATOR: Final = "purelb-allocator"
AGENT: Final = "purelb-lbnodeagent"
NODE_LEASE_PREFIX: Final = "purelb-node-"
LEADER_LEASE: Final = "purelb-allocator"
DEFAULT_GROUP: Final = "default"
KUBE_LB0: Final = "kube-lb0"
EXCLUDE_LABEL: Final = "node.kubernetes.io/exclude-from-external-load-balancers"
