"""What the allocator counts. Names are PureLB's where the meaning is the same; labels are bounded (spec D5)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from purelb_sm.domain.usage import GroupUsage

_FAST = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class AllocatorMetrics:
    """One registry, so that several allocators in one process (tests) do not share counters."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.pool_size = Gauge("purelb_address_pool_size", "Addresses in a group", ["pool", "family"], registry=r)
        self.pool_in_use = Gauge(
            "purelb_address_pool_addresses_in_use", "Addresses held by Services", ["pool", "family"], registry=r
        )
        self.pool_available = Gauge(
            "purelb_address_pool_addresses_available", "Addresses to give out", ["pool", "family"], registry=r
        )
        self.pool_quarantined = Gauge(
            "purelb_address_pool_addresses_quarantined",
            "Addresses given back and not yet free",
            ["pool", "family"],
            registry=r,
        )
        self.pool_reserved = Gauge(
            "purelb_address_pool_addresses_reserved",
            "Addresses kept by reservation, held by nobody",
            ["pool", "family"],
            registry=r,
        )
        self.pool_orphaned = Gauge(
            "purelb_address_pool_addresses_orphaned",
            "Addresses in use that no range has",
            ["pool", "family"],
            registry=r,
        )
        self.out_of_scope = Gauge(
            "purelb_servicegroups_out_of_scope", "Groups outside the install namespace, which are ignored", registry=r
        )
        self.rejected = Counter("purelb_allocation_rejected", "Services refused", ["reason"], registry=r)
        self.allocated = Counter("purelb_allocator_addresses_held", "Addresses given", registry=r)
        self.leading = Gauge("purelb_allocator_leading", "1 while this allocator leads", registry=r)
        self.term = Gauge("purelb_allocator_term", "The term this allocator leads or led last", registry=r)
        self.queue = Gauge("purelb_allocator_queue_depth", "Services waiting to be planned", registry=r)
        self.waiting = Gauge(
            "purelb_allocator_services_waiting", "Services refused and waiting for a change", registry=r
        )
        self.unannounced = Gauge(
            "purelb_services_unannounced",
            "Services with an address that no node has announced for 30 s, or what is set",
            registry=r,
        )
        self.releasing = Gauge("purelb_allocator_addresses_releasing", "Addresses whose release is held up", registry=r)
        self.plans_failed = Counter(
            "purelb_allocator_plans_failed",
            "Services that could not be planned or booked, to be tried again",
            registry=r,
        )
        self.commit = Histogram(
            "purelb_allocator_batch_seconds", "Plan and commit of a batch", buckets=_FAST, registry=r
        )
        self.batch = Histogram(
            "purelb_allocator_batch_services", "Services in a batch", buckets=(1, 2, 5, 10, 50, 100, 500), registry=r
        )
        self.publish = Histogram("purelb_allocator_publish_seconds", "One status write", buckets=_FAST, registry=r)
        self.publish_failed = Counter(
            "purelb_allocator_publish_failed", "Status writes not taken, by kind of error", ["error"], registry=r
        )
        self.reports = Counter("purelb_allocator_report_moves_booked", "Announcement moves booked", registry=r)
        self.reports_refused = Counter("purelb_allocator_reports_refused", "Reports not understood", registry=r)
        self.database_errors = Counter("purelb_allocator_database_errors", "Transactions that failed", registry=r)

    def show_pool(self, pool: str, usage: GroupUsage) -> None:
        """The numbers of a group, by family."""
        for family, of in usage.families.items():
            for gauge, value in (
                (self.pool_size, of.size),
                (self.pool_in_use, of.held),
                (self.pool_available, of.available),
                (self.pool_quarantined, of.quarantined),
                (self.pool_reserved, of.reserved),
                (self.pool_orphaned, of.orphaned),
            ):
                gauge.labels(pool, family.value).set(value)

    def forget_pool(self, pool: str) -> None:
        """A group that is gone, and nothing of it in use: its series end."""
        for gauge in (
            self.pool_size,
            self.pool_in_use,
            self.pool_available,
            self.pool_quarantined,
            self.pool_reserved,
            self.pool_orphaned,
        ):
            gauge.remove_by_labels({"pool": pool})
