"""Who may import whom (the design's rule that keeps the rooms apart), read from the source of every file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("configs", "data", "lm", "aux_heads")
STORY = {path.stem for path in ROOT.glob("*.py")}  # main.py and its helpers put the rooms together
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported_modules(source: str) -> set[str]:
    """Every absolute dotted name that `source` imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room is meant"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def offences(room: str, names: set[str]) -> list[str]:
    """What a file of `room` may not import among `names`."""
    found = []
    for name in sorted(names):
        top = name.partition(".")[0]
        other_room = top in ROOMS and top != room and not (name == "configs" or name.startswith("configs.schema"))
        if other_room or top in STORY or (top == "torch" and room in ("data", "configs")):
            found.append(name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path):
    room = path.relative_to(ROOT).parts[0]
    assert offences(room, imported_modules(path.read_text())) == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("lm", "from data.tokenizer import load"),
        ("aux_heads", "def f():\n    import lm.model"),
        ("data", "import torch.nn"),
        ("lm", "from configs.menu import render_menu"),
        ("lm", "import main"),
        ("configs", "from lm import estimate"),
    ],
)
def test_the_rule_sees_what_breaks_it(room, line):
    assert offences(room, imported_modules(line))


def test_menu_and_producer_start_without_torch():
    modules = "sys, configs.schema, configs.menu, data.producer, lm.archive, lm.estimate"
    code = f"import {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
