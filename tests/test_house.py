"""The house holds: floors, wings, circles, sizes, names and who may do what. Read from the source alone."""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from tokenry.catalog import built_wings, systems
from tokenry.testing import contract_instances

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "tokenry"
WINGS = ("pruning", "text", "codecs", "training", "generation", "interpret")
FLOORS = {"core": 0, "hosts": 1, **dict.fromkeys(WINGS, 2), "testing": 3, "lab": 3, "cli": 4}
BETWEEN_WINGS = {("generation", "codecs"), ("training", "codecs.vq")}
"""The two exceptions of the design: who may import what of another wing."""

# What is not in order yet: nothing. An exception is granted here, in writing, or not at all.
UPWARD: set[tuple[str, str]] = set()
CIRCLES: set[frozenset[str]] = set()
DOUBLE_NAMES: set[str] = set()
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()

CALLS: dict[str, set[str]] = {
    # The one training loop, and contract checks that look at gradients. Recipes of papers are Trainers.
    "backward": {"tokenry.core.descent", "tokenry.testing.language_models", "tokenry.testing.quantizers"},
    "AdamW": {
        "tokenry.core.descent",
        "tokenry.pruning.eet.training",
        "tokenry.pruning.glsim.training",
        "tokenry.text.wordpool.training",
    },
    "torch.load": set(),
    "torch.save": set(),
    "pickle.load": set(),
    "pickle.loads": {"tokenry.text.audit.engine"},  # chunks between processes of one run
    "torch.manual_seed": set(),
    "torch.random.manual_seed": set(),
    "manual_seed_all": set(),
}
"""Who may do what; nobody else does."""


WING_LINES, CLAIM_LINES = 600, 130
GRANTED = {
    # slug: lines of the wing, lines of the claim. Built before there was a budget; a number only ever falls.
    "d2o": (600, 160),
    "glsim": (730, 150),
    "eet": (1110, 140),
    # One exception: choosing bytes at the speed of tokens (tips that wait, exact draws) and scoring known text in batched runs.
    "byteprobs": (1335, 260),
    # One exception: superwords for Unigram, sizes per language for one cost as a command, parts that are carried over.
    "premium": (1520, 365),
    "kl3m": (750, 270),
    "consistency": (1630, 250),
    "wordpool": (1250, 130),
    "lexinvariant": (1170, 210),
    # One exception, for what a library that people come from has and this one lacked: quantizers made of quantizers, implicit
    # books, DiVeQ, one book for all levels, given and top codes, terms by name; manual statistics and exported graphs.
    "vq": (4250, 380),
    "audiotokens": (2680, 130),
}
"""What a system may be long beyond the budget, in writing."""


@cache
def modules():
    """Dotted name -> syntax tree of every module."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


@cache
def imports():
    """Module -> modules of ours that it imports, at the top, inside functions or for types only."""
    known = modules()
    found = defaultdict(set)
    for name, tree in known.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tokenry":
                parts = [f"{node.module}.{alias.name}" for alias in node.names]
                found[name] |= {part if part in known else node.module for part in parts}
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in known}
        found[name].discard(name)
    return dict(found)


def place(module):
    """Floor and wing of a module; None for the files at the root of the package."""
    room = module.split(".")[1] if "." in module else ""
    return (FLOORS[room], room) if room in FLOORS else None


def outside(allowed):
    seen = set()
    for module, targets in imports().items():
        here = place(module)
        for target in targets:
            there = place(target)
            if here is None or there is None:
                continue
            higher = there[0] > here[0]
            sideways = here[0] == there[0] == FLOORS["text"] and here[1] != there[1]
            if sideways and any(here[1] == a and target.startswith(f"tokenry.{b}") for a, b in BETWEEN_WINGS):
                continue
            if higher or sideways:
                seen.add((module, target))
    return seen - allowed, allowed - seen


def test_files_import_only_from_floors_below_and_wings_not_each_other():
    assert outside(UPWARD) == (set(), set())


def components():
    """Sets of modules that import each other in a circle (Tarjan)."""
    graph, index, low, stack, found = imports(), {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            member = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(member) > 1:
                found.append(frozenset(member))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return set(found)


def test_no_circle():
    assert components() == CIRCLES


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length(node):
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    start = first.end_lineno if documented else node.body[0].lineno - 1
    return node.end_lineno - start


def test_files_and_functions_are_short():
    files = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if path.read_text().count("\n") > 400}
    assert files == LONG_FILES
    long = {f"{name}.{node.name}" for name, tree in modules().items() for node in functions(tree) if length(node) > 60}
    assert long == LONG_FUNCTIONS


def test_no_public_class_name_twice():
    seen = defaultdict(set)
    for name, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                seen[node.name].add(name)
    assert {name for name, places in seen.items() if len(places) > 1} == DOUBLE_NAMES


def callers(attribute):
    found = set()
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                text = ast.unparse(node.func)
                if (
                    text == attribute
                    or text.endswith(f".{attribute}")
                    or (attribute.startswith("torch.") and text == attribute)
                ):
                    found.add(name)
    return found


@pytest.mark.parametrize("attribute", CALLS)
def test_who_may_call(attribute):
    assert callers(attribute) == CALLS.get(attribute, set())


def test_tests_seed_inside_a_block_of_their_own():
    """Models come from `tiny`, other first weights from within `seeded`: no test hands its state on to the next."""
    call = re.compile(r"(torch\.manual_seed|random\.seed)\(")
    assert [path.name for path in (ROOT / "tests").rglob("*.py") if call.search(path.read_text())] == []


BUILT = [row for row in systems() if row.status == "built"]


def source_of(module):
    path = SOURCE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("row", BUILT, ids=lambda row: row.slug)
def test_every_built_row_has_its_parts(row):
    """Its module, test, claim and page lie where the row says; with the row itself they are five."""
    parts = (
        source_of(row.module),
        ROOT / "tests" / row.wing / f"test_{row.slug}.py",
        source_of(row.claim),
        ROOT / "docs" / "systems" / f"{row.slug}.md",
    )
    assert [str(part.relative_to(ROOT)) for part in parts if not part.is_file()] == []
    assert row.serves
    assert contract_instances(row)
    assert row.compare is None or callable(row.load().at_budget)


def lines(module):
    path = SOURCE.parent / Path(*module.split("."))
    files = [path.with_suffix(".py")] if path.with_suffix(".py").exists() else path.rglob("*.py")
    return sum(file.read_text().count("\n") for file in files)


@pytest.mark.parametrize("row", [row for row in systems() if row.status == "built"], ids=lambda row: row.slug)
def test_a_system_keeps_its_budget(row):
    wing, claim = GRANTED.get(row.slug, (WING_LINES, CLAIM_LINES))
    assert lines(row.module) <= wing
    assert lines(row.claim) <= claim
    assert row.slug not in GRANTED or wing > WING_LINES or claim > CLAIM_LINES


@pytest.mark.parametrize("wing", built_wings())
def test_every_wing_runs_its_contract_over_the_catalogue(wing):
    tests = (ROOT / "tests" / wing).glob("test_*contract.py")
    assert any(f'of_wing("{wing}")' in path.read_text() for path in tests)


def test_every_page_is_in_the_navigation():
    """By the rows of the catalogue or by hand; the build itself refuses a page that is in neither."""
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages == listed | {f"systems/{row.slug}.md" for row in BUILT}


def test_imports_are_written_out():
    """No relative import, none of a name made of a string, and no name of torch or pickle that hides where it is from."""
    by_string = set()
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name} imports relatively"
                hidden = {"load", "loads", "save", "manual_seed", "seed"} & {alias.name for alias in node.names}
                assert not (hidden and (node.module or "").split(".")[0] in ("torch", "pickle")), f"{name} imports {hidden}"
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
                wanted = node.args[0]
                if isinstance(wanted, ast.Constant) and str(wanted.value).startswith("tokenry."):
                    by_string.add(name)
    # A saved quantizer names its class, which its base looks up among the wing's lazy exports.
    assert by_string == {"tokenry.codecs.vq.base"}


def test_names_say_something():
    assert not {path.name for path in SOURCE.rglob("*.py")} & {
        f"{n}.py" for n in ("utils", "helpers", "misc", "common", "util")
    }
