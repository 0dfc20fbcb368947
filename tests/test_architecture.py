"""The import rules of docs/architecture.md, read from the syntax trees: late imports inside functions count too."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from prismlab.study.stages import STAGES

ROOT = Path(__file__).parents[1] / "src" / "prismlab"
STAGE_MODULES = {entry.partition(":")[0].removeprefix("prismlab.") for entry, _ in STAGES.values()}
LEVEL_ONE = {"errors", "seeds", "stats", "cost"}
CONTRACTS = {"study.spec", "study.world", "run.step"}
HEAVY = ("torch", "transformers", "trl", "datasets", "accelerate", "numba")
ALLOWED = {
    # What each package may import of ours beside itself, level one and the contracts.
    "study": set[str](),
    "run": {"study"},
    "micro": set[str](),
    "data": {"micro", "model.checkpoint", "model.tokens"},
    "model": {"micro"},
    "verify": {"micro.program"},
    "score": {"data.items", "data.templates", "model", "verify"},
    "merge": {"arith", "model"},
    "train": {"arith", "model", "data.corpus", "data.sources"},
    "rl": {"model", "arith", "data", "verify", "score"}
    | {f"train.{name}" for name in ("logs", "optim", "resume", "saves", "snapshots")},
    "evaluate": {"model", "data", "verify", "score"},
    "analyse": {"model", "arith", "data", "score", "evaluate.draw", "evaluate.sampled"},
    "arith": {"model"},
    "claims": set[str](),
    "report": {"claims"},
    "__main__": {"cli"},
    "cli": {"cli_data", "cli_eval", "cli_judge", "cli_plan", "cli_sandbox", "cli_train", "commands", "tools"},
    "cli_sandbox": {"tools"},
    "cli_train": {"tools"},
    "cli_plan": {"commands_plan"},
    "cli_eval": {"tools"},
    "cli_data": {"study", "commands", "tools"},
    "cli_judge": {"built", "commands", "tools"},
    "built": {"study", "run"},
    # It asks whether programs can be run here; the sandbox imports nothing but the standard library.
    "commands": {"study", "run", "claims", "verify.sandbox"},
    "commands_plan": {"study", "run", "commands"},
}
# Commands on any checkpoints: a second front door, which calls the very functions that the stages call.
ALLOWED["tools"] = set(ALLOWED) - {
    "__main__",
    "cli",
    "cli_data",
    "cli_judge",
    "cli_eval",
    "cli_plan",
    "cli_train",
    "cli_sandbox",
    "commands",
    "commands_plan",
    "built",
}
NOT_FOR_TOOLS = {"study.plan", "run.runner"}
EXCEPTIONS = {
    # The planner needs one hash of the text on this machine; the import is late and brings no torch.
    ("study.plan", "micro.text"),
    # A table of facts without any library: a source by recipe is checked as one that is written out.
    ("study.spec", "data.recipe_list"),
    # Likewise: a suite is checked by its name, and its files are chosen by those of its benchmarks.
    ("study.suites", "evaluate.suites"),
    ("study.suites", "evaluate.suite_base"),
}
STUDY_PRIVATE = {"plan", "load", "include", "steps", "stages", "cost", "starter", "document", "explain"} | {
    "check",
    "pairs",
}
"""Modules of ``study`` that only the runner and the command line know."""


def modules() -> dict[str, Path]:
    """Every module of ours by its name below ``prismlab``; packages' ``__init__`` files are left out."""
    return {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
        for path in ROOT.rglob("*.py")
        if path.name != "__init__.py"
    }


@cache
def imports(path: Path, typing_too: bool = True) -> frozenset[str]:
    """Full names that a file imports anywhere in it; ``from a import b`` gives both ``a`` and ``a.b``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if not typing_too and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= {inner for statement in node.body for inner in ast.walk(statement)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it out"
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def ours(path: Path) -> set[str]:
    """Modules of ours that a file imports."""
    known = modules()
    return {name.removeprefix("prismlab.") for name in imports(path)} & set(known)


def within(name: str, allowed: set[str]) -> bool:
    """Whether a module is one of ``allowed`` or lies in a package that is."""
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


MODULES = modules()


def test_the_tree_is_found() -> None:
    assert {"study.spec", "run.step", "errors", "cli"} <= set(MODULES)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_follow_the_house_plan(name: str) -> None:
    package = name.partition(".")[0]
    found = ours(MODULES[name])
    if package in LEVEL_ONE:
        assert all(within(other, {"errors", package}) for other in found)
        return
    allowed = ALLOWED[package] | {package} | LEVEL_ONE | CONTRACTS
    wrong = {other for other in found if not within(other, allowed) and (name, other) not in EXCEPTIONS}
    assert not wrong, f"{name} may not import {sorted(wrong)}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nobody_imports_a_stage_and_stages_know_no_planner(name: str) -> None:
    found = ours(MODULES[name])
    if within(name, {"tools"}):
        assert not found & NOT_FOR_TOOLS, "a command on checkpoints builds no study"
        return
    assert not found & STAGE_MODULES - {name}, "stages meet only through artifacts on disk"
    if name.partition(".")[0] not in ("study", "run", "cli", "cli_data", "commands", "commands_plan", "built"):
        machinery = {other for other in found if other.startswith("run.") and other != "run.step"}
        machinery |= {other for other in found if other.removeprefix("study.") in STUDY_PRIVATE}
        assert not machinery, f"{name} knows of {sorted(machinery)}"


@pytest.mark.parametrize(
    "package",
    [
        "study",
        "claims",
        "report",
        "run",
        "cli",
        "cli_data",
        "cli_eval",
        "cli_plan",
        "cli_sandbox",
        "cli_train",
        "commands",
        "built",
    ],
)
def test_light_packages_never_reach_a_heavy_library(package: str) -> None:
    """Follows imports, late ones too, but those of ``tools``; an import for types alone is none."""
    reached = [name for name in MODULES if within(name, {package})]
    for name in reached:
        direct = imports(MODULES[name], typing_too=False)
        heavy = {other for other in direct if other.partition(".")[0] in HEAVY}
        assert not heavy, f"{name} reaches {sorted(heavy)}"
        reached += [other for other in ours(MODULES[name]) if other not in reached and not within(other, {"tools"})]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_stay_short(name: str) -> None:
    lines = MODULES[name].read_text(encoding="utf-8").count("\n")
    assert lines < 400, f"{name} has {lines} lines"


def test_every_stage_is_named_by_a_string_that_fits_a_file() -> None:
    for kind, (entry, version) in STAGES.items():
        module, _, function = entry.removeprefix("prismlab.").partition(":")
        assert version >= 1
        assert module in MODULES, f"{kind}: no module {module}"
        tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
        names = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in names, f"{kind}: {module} has no function {function}"
        assert [argument.arg for argument in names[function].args.args] == ["config", "inputs", "out", "progress"]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['prism', '--help']\n"
        "from prismlab.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('LOADED', *sorted(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, loaded = done.stdout.partition("LOADED")
    assert "Commands:" in text
    heavy = {"torch", "transformers", "pydantic", "numpy", "yaml", "rich", "plotly"}
    assert not heavy & set(loaded.split())
