"""A cluster of nodes on one machine: network namespaces joined by a bridge, with a router and client beside them."""
