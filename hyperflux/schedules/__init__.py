"""Pruning schedules as pure state machines: the default course, the paper's (`published`), and the rival (`magnitude`).

A schedule says what a gate does next; `PruningScheduler` carries it out after every optimizer step; `factory` builds
the schedule for a network, a sparsity and a number of steps.
"""
