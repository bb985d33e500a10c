"""Backends: what trains and prunes a network on the program's orders. `base` has the contract."""
