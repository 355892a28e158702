"""Settings, by flag, environment (`PURELB_…`) and default, in that order. The table in the docs is compared with these.

Durations are seconds. A secret (the password in a database URL) is held so that printing settings does not show it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_DATABASE = "sqlite:////var/lib/purelb/purelb.db"


class _Base(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="PURELB_", extra="ignore")


class ClusterSettings(_Base):
    """How to reach the cluster, and where we are installed in it."""

    kubeconfig: Path | None = Field(None, description="kubeconfig file; without it the in-cluster service account")
    install_namespace: str = Field("purelb-system", description="namespace of Leases, groups and reports")
    log_format: Literal["json", "text"] = Field("json", description="how log lines look on stderr")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least severe line shown")
    web_host: str = Field("", description="address of the health and metrics server; empty: all")
    web_port: int = Field(7472, ge=0, le=65535, description="its port; 0: no server")


class AllocatorSettings(ClusterSettings):
    """The allocator's settings."""

    database: SecretStr = Field(SecretStr(DEFAULT_DATABASE), description="SQLAlchemy URL of the book")
    cluster_name: str = Field("default", description="name of this cluster in the book")
    identity: str = Field("", description="name of this allocator in the leader Lease; empty: host name and pid")
    load_balancer_class: str = Field(
        "purelb.io/purelb", validation_alias="purelb_class", description="the spec.loadBalancerClass we serve"
    )
    default_class: bool = Field(True, description="serve Services without a loadBalancerClass too")
    leader_lease_s: float = Field(15.0, gt=0, description="how long leadership outlives its holder")
    leader_renew_s: float = Field(10.0, gt=0, description="a leader that could not renew for so long steps down")
    leader_retry_s: float = Field(2.0, gt=0, description="pause between tries to take or renew leadership")
    batch_max: int = Field(500, ge=1, le=5000, description="Services planned and committed in one transaction, at most")
    publish_concurrency: int = Field(24, ge=1, le=256, description="status writes under way at once")
    reservations_poll_s: float = Field(
        5.0, ge=0.05, description="while nothing else happens, changed reservations are looked for this often"
    )
    settle_s: float = Field(
        3.0,
        ge=0,
        description="least time between begin and end of a release: agents withdraw within 2 s and report within 1 s",
    )
    unannounced_s: float = Field(
        30.0, gt=0, description="an address that no node has announced for so long is an Event and counted in a metric"
    )
    model_config = SettingsConfigDict(env_prefix="PURELB_", extra="ignore", populate_by_name=True)


class AgentSettings(ClusterSettings):
    """The node agent's settings."""

    node_name: str = Field("", description="the Node this agent runs on")
    load_balancer_class: str = Field(
        "purelb.io/purelb", validation_alias="purelb_class", description="the spec.loadBalancerClass we announce"
    )
    lease_s: float = Field(10.0, ge=1, description="how long the others count on this node after its last renewal")
    renew_s: float = Field(2.0, gt=0, description="pause between two renewals of the node's Lease")
    when_api_away: Literal["keep", "strict"] = Field(
        "keep", description="without the API server: keep what is announced, or let it lapse after a lifetime"
    )
    heartbeat_s: float = Field(
        0.2,
        ge=0,
        le=2,
        description="pause between two heartbeats to the agents of the same subnets; 0: none, Leases alone decide",
    )
    heartbeat_port: int = Field(7473, ge=1, le=65535, description="UDP port of heartbeats, on the node's own addresses")
    keep_on_exit: bool = Field(
        False, description="leave the addresses, for their lifetime, when stopped: for a rolling update"
    )
    resync_s: float = Field(60.0, gt=0, description="look at the whole kernel so often, whatever it tells")
    report_s: float = Field(1.0, ge=0.1, description="least time between two reports")
    journal_directory: Path = Field(
        Path("/run/purelb"), description="where our addresses are noted if the kernel cannot mark them"
    )
    model_config = SettingsConfigDict(env_prefix="PURELB_", extra="ignore", populate_by_name=True)

    @model_validator(mode="after")
    def _renewed_in_time(self) -> Self:
        """Several renewals must fit in a Lease, else one that is late makes the others take over."""
        if self.renew_s > self.lease_s / 4:
            raise ValueError("renew_s must be at most a quarter of lease_s")
        return self
