"""What pruning does to single weights, layers and the network, recorded while it happens.

`levels` says how closely, `columns` what, `statistics` how each figure is computed, `recorder` when.
"""
