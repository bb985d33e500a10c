"""Labels, layer names and settings are anybody's text: none of it becomes markup, in HTML or in Markdown."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest
from crafted import subject, tables
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt  # comes with rich

from hyperflux.report.markdown import markdown_report
from hyperflux.report.markup import escape_markdown, fenced, keep_percents, markdown_table, with_label
from hyperflux.report.page import html_page, page_around
from hyperflux.report.style import COLOURS
from hyperflux.report.svg import Key, Plot

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PLAIN = "plain"
PIECES = [
    *"<>&\"'/=`*_~[]()!#|\\{}%$:;-+.\n\t\r\0\x07\x1b ", "ab", "5 %", "é", "雪", "\u2028", "\x85", "</td>", "-->", "{{",
    "{%", "<script>", "&lt;", "](x)", "http://x", "\\|", "``", "__", "**",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(
    st.characters(exclude_categories=("Cs",)), max_size=30
)
HOSTILE = [
    "<img src=x onerror=alert(1)>", "</pre></td><script>1</script>", '" onload="alert(1)', "a|b", "\\|", "\\", "`",
    "_a_", "__init__", "a_b", "*a*", "~~a~~", "[a](http://x)", "![a](b)", "<http://x>", "&lt;", "# a #", "a\n\n# b",
    "- a", "1. a", "```\na\n```", "{{ 7 * 7 }}", "{% raw %}", "\x07", "\0", "a\r\nb",
]  # fmt: skip


class Structure(HTMLParser):
    """The tags of a page with their attributes' names, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, [name for name, _ in attrs]))

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data!r}")

    def handle_data(self, data):
        self.text.append(data)


def named(text, other):
    """A run whose label, layers, model, data set, backend, warning and folder are called `text`."""
    return subject(
        {text: 100, other: 100}, sizes={text: 1000, other: 1000}, label=text, model=text, dataset=text, backend=text,
        controller=text, warnings=[text], folder=f"runs/{text.replace('/', '')}",
    )  # fmt: skip


def drawn(text):
    """A plot whose words are all `text`."""
    svg = '<svg viewBox="0 0 1 1"><g class="data"></g></svg>'
    return {"Comparison": [Plot("density", text, text, text, svg, [Key(text, COLOURS[0]), Key(text, COLOURS[1], "▲")])]}


def tokens(markdown):
    """What Markdown makes of a text: kinds and tags of all blocks and of what is in them, and its words."""
    kinds, words = [], []
    for block in MARKDOWN.parse(markdown):
        kinds.append((block.type, block.tag, block.level, block.markup if block.type != "fence" else ""))
        for inner in block.children or []:
            if inner.type in ("text", "text_special"):
                words.append(inner.content)
            else:
                kinds.append((inner.type, inner.tag))
        words.append("\n")
    return kinds, "".join(words)


@settings(max_examples=60)
@given(TEXTS, st.sampled_from([1, 2]))
@example("<script>alert(1)</script>", 1)
@example('"><svg onload=alert(1)>', 2)
def test_no_text_changes_the_elements_of_a_page(text, count):
    """The same tags and attributes, in the same order, as with plain names."""

    def structure(text):
        runs = [named(text, "other"), replace(named(text, "other"), label=f"{text} b")][:count]
        return Structure(page_around(drawn(text), runs))

    if text != "other":
        assert structure(text).tags == structure(PLAIN).tags


@settings(max_examples=3, deadline=None)
@given(TEXTS)
@example("</svg><script>$x$ & ]]></script>")
def test_no_text_changes_the_elements_around_and_in_drawn_plots(text):
    """The same kinds of elements with every plot drawn; how many a name in SVG takes depends on its characters."""

    def structure(text):
        telemetry = tables({text: [900] * 5 + [400] * 15, "other": [800] * 20}, sizes={text: 1000, "other": 1000})
        run = replace(named(text, "other"), label=text)
        recorded = replace(run.recorded, telemetry=telemetry)
        runs = [replace(run, recorded=recorded), replace(run, recorded=recorded, label=f"{text} b")]
        return Structure(html_page(runs)).tags

    if text != "other":
        kinds = [{tag if isinstance(tag, str) else tag[0] for tag in structure(name)} for name in (text, PLAIN)]
        assert kinds[0] == kinds[1]
        assert "script" not in kinds[0]


@settings(max_examples=100)
@given(TEXTS, st.sampled_from([1, 2]))
@example("_a_", 1)
@example("|", 2)
def test_no_text_changes_the_blocks_of_the_markdown(text, count):
    """The same headings, tables, lists, fences and emphases as with plain names."""

    def structure(text):
        runs = [named(text, "other"), replace(named(text, "other"), label=f"{text} b")][:count]
        return tokens(markdown_report(runs))[0]

    if text != "other":
        assert structure(text or "x") == structure(PLAIN)


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_hostile_text_as_it_is(text):
    shown = " ".join(text.split()).replace("\0", "\ufffd")
    assert tokens(f"- **{escape_markdown(text)}.** x")[1].strip() == f"{shown}. x"
    _, cells = tokens(markdown_table(["a", "b"], [[text, "x"]]))
    assert [cell for cell in cells.split("\n") if cell] == ["a", "b", shown, "x"]


@given(TEXTS)
def test_escaped_markdown_is_one_line_of_the_same_text(text):
    shown = " ".join(text.split()).replace("\0", "\ufffd")
    assert "\n" not in escape_markdown(text)
    assert tokens(f"x{escape_markdown(text)}x")[1].strip() == f"x{shown}x"


def test_escaping_leaves_readable_names_alone_and_is_done_once():
    for name in ("layer1.0.conv1.weight", "patch_embed.proj", "mlp:16-24-4", "95 % sparsity (seed 0)"):
        assert escape_markdown(name) == name
    assert escape_markdown(escape_markdown("a*b")) == "a\\*b"


@given(st.text("`a\n", max_size=20))
def test_a_fence_is_longer_than_any_in_its_code(code):
    (block,) = MARKDOWN.parse(fenced(code, "sh"))
    assert (block.type, block.info) == ("fence", "sh")
    assert block.content.strip("\n") == code.strip("\n")


def test_a_number_stays_with_its_percent_sign():
    assert keep_percents("<b> 5 % of 7 %") == "&lt;b&gt; 5&nbsp;% of 7&nbsp;%"
    assert keep_percents("a % b") == "a % b"


def test_a_drawing_gets_one_label_of_any_text():
    assert with_label('<svg viewBox="0"><svg/></svg>', '"a" & <b>') == (
        '<svg role="img" aria-label="&#34;a&#34; &amp; &lt;b&gt;" viewBox="0"><svg/></svg>'
    )
