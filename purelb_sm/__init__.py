"""A LoadBalancer for Kubernetes clusters without a cloud, with a book of who held which address, when and why."""

__version__ = "0.1.0"
