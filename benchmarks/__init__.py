"""How fast it is, measured: `python -m benchmarks NAME`. Not part of the tests, which depend on no speed.

Every number is printed with the machine it was measured on; docs/performance.md holds what `make bench` wrote there.
"""
