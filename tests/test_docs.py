"""The documents and the code say the same: tags, constants, recipe settings, examples, commands, links."""

import ast
import doctest
import importlib
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
    """E1 to E11 are the paper's, the others ours; the default course stands before the law."""
    assert sorted(TAGS, key=lambda tag: int(tag[1:])) == [f"E{number}" for number in range(1, 15)]
    assert [tag for tag in TAGS if int(tag[1:]) < 12] == [f"E{number}" for number in range(1, 12)]


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


def code_value(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("path", "literal"), CONSTANT_ROWS)
def test_a_constant_on_the_page_is_the_codes(path, literal):
    assert code_value(path) == ast.literal_eval(literal)


def test_every_numeric_constant_of_the_package_is_on_the_page():
    found = set()
    for file in (ROOT / "hyperflux").rglob("*.py"):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                value = getattr(importlib.import_module(module), name)
                numbers = value if isinstance(value, tuple) else (value,)
                if name.isupper() and all(isinstance(number, int | float) for number in numbers):
                    found.add(f"{module}.{name}")
    assert found == {path for path, _ in CONSTANT_ROWS}


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
