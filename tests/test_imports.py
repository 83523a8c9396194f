"""One import direction, read from the source of every file: configs <- data, aux_heads <- lm <- main."""

import ast
import subprocess
import sys

import pytest

from tests.constants import ROOT

MAY_IMPORT = {
    "configs": {"configs"},
    "data": {"configs", "data"},
    "aux_heads": {"configs", "aux_heads"},
    "lm": {"configs", "data", "aux_heads", "lm"},
}
OURS = {*MAY_IMPORT, "main", "tests", "benchmarks"}
WITHOUT_TORCH = ("configs", "data")
SOURCES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported_modules(source: str) -> set[str]:
    """Every absolute dotted name that `source` imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which package is meant"
            names.add(node.module)
    return names


def offences(package: str, names: set[str]) -> set[str]:
    """What a file of `package` may not import among `names`."""
    forbidden = OURS - MAY_IMPORT[package] | ({"torch"} if package in WITHOUT_TORCH else set())
    return {name for name in names if name.partition(".")[0] in forbidden}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_import_in_one_direction(path):
    assert offences(path.relative_to(ROOT).parts[0], imported_modules(path.read_text())) == set()


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("data", "from lm.model import Transformer"),
        ("data", "def f():\n    import aux_heads.joint"),
        ("aux_heads", "from data.tokenizer import load"),
        ("configs", "from data.mixing import shares"),
        ("data", "import torch.nn"),
        ("lm", "import main"),
        ("lm", "from tests.program import Program"),
    ],
)
def test_the_rule_sees_what_breaks_it(package, line):
    assert offences(package, imported_modules(line))


def test_main_is_alone_at_the_top():
    assert [path.name for path in ROOT.glob("*.py")] == ["main.py"]


def test_menu_and_producer_start_without_torch():
    modules = "sys, data.producer, lm.cli.choose, lm.checkpoint.archive, lm.runtime.estimate, lm.runtime.watch"
    code = f"import {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=600)
