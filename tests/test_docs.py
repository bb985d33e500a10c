"""The documents and the code say the same: tags, constants, recipe settings, examples, commands, links."""

import ast
import dataclasses
import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import click
import pytest
from hyperflux_cli.main import main

from hyperflux import recipes

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
ALGORITHM = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8")
CONSTANTS = (ROOT / "docs" / "constants.md").read_text(encoding="utf-8")
OPTIONAL = ("accelerate", "lightning")
"""Libraries that examples of docs/torch.md use and the project does not install."""
TAGS = re.findall(r"^### (E\d+)\b", ALGORITHM, re.MULTILINE)


def functions(folder):
    """(module, name, docstring) of every public function and method of public classes under a folder."""
    for file in sorted((ROOT / folder).rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        owners = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_")]
        for owner in owners:
            for node in owner.body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    yield file.stem, node.name, ast.get_docstring(node) or ""


def fenced(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_page_has_every_tag_once():
    """E1 to E11 come in the paper's order; E12 to E18, ours, where a run needs them."""
    assert sorted(TAGS, key=lambda tag: int(tag[1:])) == [f"E{number}" for number in range(1, 19)]
    assert [tag for tag in TAGS if int(tag[1:]) < 12] == [f"E{number}" for number in range(1, 12)]


def test_the_map_of_equations_is_the_page():
    """The table at the top has the page's order, and names code that exists and cites the tag."""
    rows = re.findall(r"^\| \[(E\d+)\]\(#[\w-]+\) \| [^|]+ \| \[?`([\w.]+)`", ALGORITHM, re.MULTILINE)
    assert [tag for tag, _ in rows] == TAGS
    for tag, path in rows:
        assert re.search(rf"\({tag}\)\.", code_value(f"hyperflux.{path}").__doc__.split("\n\n")[0]), path


def test_the_specification_reads_in_the_order_of_the_page():
    """Tags rise as one reads spec.py: E1 to E7, then capacity and its kin; the loop comes last."""
    tree = ast.parse((ROOT / "hyperflux" / "spec.py").read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    tags = [tag for node in found for tag in re.findall(r"\((E\d+)\)\.", ast.get_docstring(node).split("\n\n")[0])]
    assert tags == [f"E{number}" for number in (*range(1, 8), 12, 17, 18)]
    assert tags == [tag for tag in TAGS if tag in tags]
    assert found[-1].name == "train"


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_is_cited_by_exactly_one_public_function(tag):
    """A function cites its equation at the end of its docstring's first sentence: "... (E5).\""""
    citing = [
        f"{module}.{name}"
        for module, name, docstring in functions("hyperflux")
        if re.search(rf"\({tag}\)\.", docstring.split("\n\n")[0])
    ]
    assert len(citing) == 1
    assert citing[0].split(".")[-1] in ALGORITHM


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_is_cited_by_a_test(tag):
    citing = [
        name
        for module, name, docstring in functions("tests")
        if name.startswith("test_") and module != "test_docs" and re.search(rf"\b{tag}\b", docstring)
    ]
    assert citing


def test_code_cites_no_tag_that_the_page_lacks():
    cited = {tag for *_, docstring in functions("hyperflux") for tag in re.findall(r"\bE\d+\b", docstring)}
    assert cited <= set(TAGS)


def run_example(page, block, namespace):
    """Run a block as a doctest in `namespace`, which it changes."""
    assert ">>>" in block, "an example without a prompt would not be run"
    example = doctest.DocTestParser().get_doctest(block, namespace, f"{page.name}: {block[:60]}", str(page), 0)
    failures, tried = doctest.DocTestRunner().run(example, clear_globs=False)
    assert failures == 0
    assert tried > 0
    namespace.update(example.globs)


def optional_library(block):
    """The library of `OPTIONAL` that an example imports."""
    return next((name for name in OPTIONAL if re.search(rf"^>>> (import|from) {name}\b", block, re.MULTILINE)), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_run_and_print_what_the_page_says(page):
    namespace = {}
    for block in fenced(page, "python"):
        if optional_library(block) is None:
            run_example(page, block, namespace)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("library", OPTIONAL)
def test_examples_with_other_libraries_run_where_these_are_installed(library):
    pytest.importorskip(library)
    page = ROOT / "docs" / "torch.md"
    (block,) = [block for block in fenced(page, "python") if optional_library(block) == library]
    run_example(page, block, {})


def test_the_algorithm_page_has_examples():
    assert len(fenced(ROOT / "docs" / "algorithm.md", "python")) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_the_page_use_options_that_exist(page):
    for block in fenced(page, "(?:console|sh)"):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            for command in re.findall(r"(?:^|[ /])hyperflux( .*?)?(?= \||&&|$)", line.removeprefix("$ ")):
                words = shlex.split(command.replace("$seed", "0").replace("$sparsity", "0.9"), comments=True)
                if words and words[0] in main.commands:
                    with main.commands[words[0]].make_context(words[0], words[1:]):
                        pass
                else:
                    with pytest.raises((click.exceptions.Exit, click.exceptions.NoArgsIsHelpError)):
                        main.make_context("hyperflux", words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_on_the_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def rows(pattern):
    found = re.findall(pattern, CONSTANTS, re.MULTILINE)
    assert found
    return found


CONSTANT_ROWS = rows(r"^\| `(hyperflux\.[\w.]+)` \| `([^`]+)` \|")


SPECIFICATION = [
    "hyperflux.spec",
    *(f"hyperflux.schedules.{name}" for name in ("curves", "controllers", "default", "published", "magnitude")),
    *(f"hyperflux.law.{name}" for name in ("fit", "outliers", "sweep", "saliency")),
]
"""Modules whose numbers define the algorithm and the pruning law: every one of them stands on the page."""
LIMITS = {
    "hyperflux.law.sweep.MAX_EXPONENT",
    "hyperflux.law.sweep.MAX_PRESSURES",
    "hyperflux.schedules.published.MAX_INTERVALS",
}
"""Of these modules, what only refuses slips of the keyboard."""


def code_value(path):
    """What a dotted path names: a constant, a function, or the default of a dataclass's field."""
    return pkgutil.resolve_name(path)


@pytest.mark.parametrize(("path", "literal"), CONSTANT_ROWS)
def test_a_constant_on_the_page_is_the_codes(path, literal):
    assert code_value(path) == ast.literal_eval(literal)


def is_numeric(value):
    numbers = value if isinstance(value, tuple) and value else (value,)
    return all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)


def numeric_constants(module):
    """Paths of the public constants of a module, and of the fields of its dataclasses that have a default but 0.

    A field that starts at 0 is a counter or a sum.
    """
    tree = ast.parse(Path(importlib.import_module(module).__file__).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id.isupper() and not target.id.startswith("_"):
                path = f"{module}.{target.id}"
                if is_numeric(code_value(path)):
                    yield path
        elif isinstance(node, ast.ClassDef) and dataclasses.is_dataclass(code_value(f"{module}.{node.name}")):
            for field in dataclasses.fields(code_value(f"{module}.{node.name}")):
                if is_numeric(field.default) and field.default != 0:
                    yield f"{module}.{node.name}.{field.name}"


def test_every_number_of_the_specification_is_on_the_page_and_no_other():
    found = {path for module in SPECIFICATION for path in numeric_constants(module)}
    assert found - LIMITS == {path for path, _ in CONSTANT_ROWS}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("hyperflux.spec.KAPPA", 0.25),
        ("hyperflux.schedules.published.PublishedSchedule.presence_decay", 0.75),
        ("hyperflux.law.sweep.SweepSettings.lowest", -7.0),
    ],
)
def test_constants_and_defaults_of_fields_are_read_and_found(path, value):
    """The tests above are not empty: they see a module's constant and a dataclass's field alike."""
    assert code_value(path) == value
    assert path in {found for module in SPECIFICATION for found in numeric_constants(module)}


def recipe_rows():
    """(recipe, setting, literal) of every filled cell: a table has a column for each of its recipes."""
    columns = []
    for line in CONSTANTS.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "setting":
            columns = [cell.strip("`") for cell in cells[1:-1]]
        elif columns and cells[0].startswith("`"):
            for recipe, cell in zip(columns, cells[1:-1], strict=True):
                if cell:
                    yield recipe, cells[0].strip("`"), cell.strip("`")


RECIPE_ROWS = list(recipe_rows())


@pytest.mark.parametrize(("recipe", "setting", "literal"), RECIPE_ROWS)
def test_a_recipe_setting_on_the_page_is_the_recipes(recipe, setting, literal):
    value = recipes.load(recipe)
    for key in setting.split("."):
        value = value[key]
    assert value == ast.literal_eval(literal)


@pytest.mark.parametrize("recipe", recipes.names())
def test_every_numeric_setting_of_a_recipe_is_on_the_page(recipe):
    tables = recipes.load(recipe)
    numeric = (
        {
            f"{table}.{key}"
            for table, values in tables.items()
            if isinstance(values, dict)
            for key, value in values.items()
            if not isinstance(value, str)
        }
        | {"batch_size", "sparsity"}
        | ({"train_samples"} & tables.keys())
    )
    assert numeric <= {setting for name, setting, _ in RECIPE_ROWS if name == recipe}
