"""Files, functions and signatures stay small, and every file is named after what it holds."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 7
JUNK_DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core", "registry", "factory", "tools"}


def test_no_file_is_longer_than_400_lines(sources):
    tests = [path for folder in ("tests", "bench") for path in (ROOT / folder).rglob("*.py")]
    lengths = {source.name: source.text.count("\n") for source in sources}
    lengths |= {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in tests}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES} == {}


def functions(source):
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_function_is_longer_than_60_lines(sources):
    long = [
        f"{source.name}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for source in sources
        for node in functions(source)
        if node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    ]
    assert not long


def test_no_function_takes_more_than_7_parameters(sources):
    wide = []
    for source in sources:
        for node in functions(source):
            names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            if len([name for name in names if name not in ("self", "cls")]) > PARAMETERS:
                wide.append(f"{source.name}:{node.lineno} {node.name}{tuple(names)}")
    assert not wide, "give them a dataclass"


def test_no_file_or_folder_is_a_junk_drawer(sources):
    tests = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py")]
    parts = {part for source in sources for part in Path(source.name).with_suffix("").parts}
    parts |= {part.removeprefix("test_") for path in tests for part in path.with_suffix("").parts}
    assert not parts & JUNK_DRAWERS


def test_tests_are_no_package():
    """An `__init__.py` in tests/model would hide the real `model`."""
    assert not list((ROOT / "tests").rglob("__init__.py"))
