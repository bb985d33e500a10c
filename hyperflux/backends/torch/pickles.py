"""What a pickle would build, counted before anything of it is built: few bytes can stand for very much."""

from __future__ import annotations

import pickletools
from typing import IO

MAX_VALUES = 1 << 21
"""Most values of a pickle: a tensor takes about twenty, and a value up to 220 bytes of memory."""
_GET, _PUT = {"BINGET", "GET", "LONG_BINGET"}, {"BINPUT", "LONG_BINPUT", "MEMOIZE", "PUT"}
_TUPLE = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_EFFECTS = {
    each.name: (
        pickletools.markobject in each.stack_before,
        len([part for part in each.stack_before if part not in (pickletools.markobject, pickletools.stackslice)]),
        len(each.stack_after),
    )
    for each in pickletools.opcodes
}
"""Of each operation: whether it takes all behind the last mark, how many more values it takes, how many it gives."""


def check_pickle(file: IO[bytes]) -> None:
    """Go through the pickle that begins here, up to its end, and build nothing.

    What the pickle fetches from its memory counts with all that is in it. Otherwise tuples of two references to the
    tuple before would take a few bytes each, and twice the time of the one before to be hashed.

    Raises:
        ValueError: It is none, or holds more than `MAX_VALUES` values or a bytearray, which torch.save never writes and
            which takes memory by its length alone.
    """
    try:
        _check(file)
    except (IndexError, KeyError) as error:
        raise ValueError("it fetches what is not there") from error


def _check(file: IO[bytes]) -> None:
    """Follow the sizes of what is on the pickle's stack. Raises IndexError, KeyError where it fetches nothing."""
    count, stack, marked, memory = 0, list[int](), list[list[int]](), dict[object, int]()
    for operation, argument, _ in pickletools.genops(file):
        name = operation.name
        if name in _PUT:
            memory[len(memory) if argument is None else argument] = stack[-1]
            continue
        if name == "MARK":
            marked.append(stack)
            stack = []
            continue
        if name == "GLOBAL" and str(argument).endswith(" bytearray"):
            raise ValueError("it holds a bytearray")
        size = memory[argument] if name in _GET else 1
        count += size
        if count > MAX_VALUES:
            raise ValueError(f"it holds more than {MAX_VALUES:,} values; save the model's state_dict() by itself")
        from_mark, taken, given = _EFFECTS[name]
        inside = []
        if from_mark:
            inside, stack = stack, marked.pop()
        if taken:
            inside += stack[-taken:]
            del stack[-taken:]
        if name in _TUPLE:
            size += sum(inside)
        if given:
            stack += [size] * given
