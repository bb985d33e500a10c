"""Courses of pruning as pure state machines: ours (`capacity`), the paper's (`published`), the rival (`magnitude`).

A schedule says what the gate of a network does next; a `scheduler` carries it out after every optimizer step.
"""
