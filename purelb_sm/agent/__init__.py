"""The node agent: compares what the node should announce with what its kernel holds, and closes the difference.

`agent` puts the parts together. `intake` watches the cluster, `roster` says who is alive, `survey` where the node
stands; `domain.announce` decides; `announcer` drives the kernel, `ledger` keeps the states and what is reported,
`telling` writes annotations and Events. The database is never reached from here.
"""
