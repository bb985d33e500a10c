"""Courses of pruning as pure state machines: ours (`capacity`), the paper's (`published`), the rival (`magnitude`).

A program says what the gate of a network does next; a `pilot` carries it out after every optimizer step.
"""
