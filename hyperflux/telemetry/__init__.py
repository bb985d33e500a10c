"""Records what pruning does to weights, layers and the network while they train.

`levels` sets the detail, `columns` defines the tables, `statistics` computes each figure, `recorder` decides when.
"""
