"""Pruning schedules as pure state machines: the default course, the paper's (`published`), and magnitude pruning.

A schedule decides the settings of the next steps; `PruningScheduler` applies them to a gate after every optimizer
step; `factory` builds the schedule for a network, a sparsity and a number of steps.
"""
