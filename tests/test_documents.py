"""What the documents say of the code is so: files, functions, keys, commands and messages that they name exist."""

import ast
import importlib.util
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from configs.schema import Preset, parse_preset
from tests.constants import ROOT
from tests.mutations import MUTATIONS

pytestmark = pytest.mark.core

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", ".github/MODEL_INSTRUCTIONS.md"]
DOCUMENTS += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
LONGEST_README = 12_000  # bytes: read in one sitting; everything else is in docs/
ROOMS = sorted({path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/*.py")} - {".venv", "venv"})
PROGRAM = [
    *ROOT.glob("*.py"),
    *(path for room in {*ROOMS} - {"tests", "benchmarks"} for path in (ROOT / room).rglob("*.py")),
]
NO_FILES = {
    "samples.md",
    "report.md",
    "README.new.md",
    "checkpoints/report.md",
    "checkpoints/samples.md",
    "configs/NN_*.json",
}  # a run writes them; a pattern
FOR_THE_USER = {
    "UserError",
    "PresetError",
    "SourceError",
    "CheckpointError",
    "DiskError",
    "DiskFull",
    "StartPointError",
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def names_in(path: Path) -> set[str]:
    """What a module defines, and as "Class.name" what its classes do."""
    scopes = [
        (tree(path), ""),
        *((node, f"{node.name}.") for node in tree(path).body if isinstance(node, ast.ClassDef)),
    ]
    return {
        prefix + name
        for scope, prefix in scopes
        for node in scope.body
        for name in ([node.name] if hasattr(node, "name") else assigned(node))
    }


def assigned(node: ast.AST) -> list[str]:
    return [part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]


def literal(node: ast.AST) -> str | None:
    """A string in the source, with … for what is put into it."""
    if isinstance(node, ast.BinOp):
        return literal(node.left)
    if isinstance(node, ast.Constant):
        return re.sub(r"%(\.\d)?[dfrs]", "…", node.value) if isinstance(node.value, str) else None
    if not isinstance(node, ast.JoinedStr):
        return None
    return re.sub("…+", "…", "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))


def quoted(text: str) -> list[str]:
    """What stands in backticks, code blocks left out."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"(?s)```.*?```", "", text))


def block(first_line: str) -> str:
    """The README's code block that begins so."""
    return next(code for code in re.findall(r"(?s)```\w*\n(.*?)```", README) if code.startswith(first_line))


MESSAGES = [
    message.removesuffix("…")
    for cell in re.findall(r"(?m)^\| (`.*?) \|", TEXTS["docs/troubleshooting.md"])
    for message in re.findall("`([^`]+)`", cell)
]


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_a_document_names_exist(name):
    text = TEXTS[name]
    rooms = "|".join([*ROOMS, "docs", ".github", ".ci"])
    paths = set(re.findall(rf"(?<![\w/.~-])((?:{rooms})/[\w./*-]*[\w*])", text))
    paths |= {path for path in quoted(text) if re.fullmatch(r"[\w/.]+\.(py|toml|md)|\d\d_\w+\.json", path)}
    missing = [path for path in paths if not list(ROOT.glob(path)) and not list(ROOT.rglob(path))]
    assert sorted(set(missing) - NO_FILES) == []


@pytest.mark.parametrize("name", TEXTS)
def test_functions_and_classes_that_a_document_names_exist(name):
    named = re.findall(r"`([\w/]+\.py): (\w+)", TEXTS[name])
    assert [f"{path}: {what}" for path, what in named if what not in names_in(ROOT / path)] == []
    known = {name for path in PROGRAM for name in names_in(path)}
    methods = [name for name in quoted(TEXTS[name]) if re.fullmatch(r"[A-Z]\w+\.(?!json)[a-z]\w+", name)]
    assert [name for name in methods if name not in known] == []


@pytest.mark.parametrize("name", TEXTS)
def test_preset_keys_that_a_document_names_exist(name):
    sections = {
        key: field.annotation.model_fields
        for key, field in Preset.model_fields.items()
        if hasattr(field.annotation, "model_fields")
    }
    keys = [
        key.partition(".")[::2]
        for key in quoted(TEXTS[name])
        if re.fullmatch(rf"({'|'.join(sections)})\.(?!py$|gguf$)\w+", key)
    ]
    assert [f"{section}.{key}" for section, key in keys if key not in sections[section]] == []


@pytest.mark.parametrize("name", TEXTS)
def test_commands_of_a_document_name_modules_and_extras_that_exist(name):
    # Looking for pip makes setuptools put its own distutils in place, which a compiler in the same process stumbles over.
    modules = set(re.findall(r"-m ([a-z_][\w.]*\w)", TEXTS[name])) - {"pip"}
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\.\[(\w+)\]", TEXTS[name])) <= extras.keys()


def test_the_tree_shows_what_there_is():
    shown = [line.split()[0] for line in block("main.py").splitlines()]
    assert [path for path in shown if not (ROOT / path).exists()] == []
    there = {path.name for path in ROOT.glob("*.py")} | {f"{room}/" for room in ROOMS}
    assert there - set(shown) == set()


def test_the_readme_is_read_in_one_sitting():
    assert len(README.encode()) <= LONGEST_README


def test_the_preset_of_the_readme_is_accepted():
    assert parse_preset(block("{\n"), "README.md").name == "my_library"


def test_messages_that_troubleshooting_explains_are_in_the_source():
    literals = [text for path in PROGRAM for node in ast.walk(tree(path)) if (text := literal(node))]
    assert len(MESSAGES) > 50
    assert [message for message in MESSAGES if not any(message in text for text in literals)] == []


def test_every_message_to_the_user_is_explained():
    raised = [
        text
        for path in PROGRAM
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in FOR_THE_USER and node.args
        if (text := literal(node.args[0]))
        and text != "source …: …"  # the words of data/sources/hub_messages.py: advice_for
    ]
    assert len(raised) > 35
    assert [text for text in raised if not any(message in text for message in MESSAGES)] == []


def test_every_deliberate_defect_still_has_its_place():
    for name, mutation in MUTATIONS.items():
        assert (ROOT / mutation.path).read_text(encoding="utf-8").count(mutation.old) == 1, name
