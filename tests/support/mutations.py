"""Files that were whole once: bytes flipped, cut off, left out, doubled, overwritten or taken from elsewhere."""

from hypothesis import strategies as st


@st.composite
def mutated(draw, whole):
    """The bytes of `whole` after one to three mishaps."""
    content = whole
    for _ in range(draw(st.integers(1, 3))):
        place, length = draw(st.integers(0, len(content))), draw(st.integers(0, 40))
        part = content[place : place + length]
        match draw(st.sampled_from(["flip", "cut", "leave out", "double", "splice", "overwrite", "repeat"])):
            case "flip" if place < len(content):
                changed = content[place] ^ draw(st.integers(1, 255))
                content = content[:place] + bytes([changed]) + content[place + 1 :]
            case "cut":
                content = content[:place]
            case "leave out":
                content = content[:place] + content[place + length :]
            case "double":
                content = content[:place] + part + content[place:]
            case "splice":
                other = draw(st.integers(0, len(content)))
                content = content[:place] + content[other:]
            case "overwrite":
                content = content[:place] + draw(st.binary(max_size=12)) + content[place + length :]
            case "repeat":
                content = content + content
    return content


NUMBERS = ["0", "-1", "1e999", "NaN", "-Infinity", "1" * 300, "0x" + "f" * 20, "1.5", "true", "null", '""', "[]", "{}"]


@st.composite
def reworded(draw, text):
    """A text in which one to three of its words are others: numbers that nothing can have, other types, other words."""
    import re

    for _ in range(draw(st.integers(1, 3))):
        words = list(re.finditer(r'"[^"]*"|[\w.+-]+', text))
        if words:
            chosen = draw(st.sampled_from(words))
            put = draw(st.sampled_from(NUMBERS) | st.sampled_from(words).map(lambda found: found.group()))
            text = text[: chosen.start()] + put + text[chosen.end() :]
    return text
