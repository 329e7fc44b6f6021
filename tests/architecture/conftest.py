"""The sources as these tests see them: every file of the packages, parsed once."""

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("model", "diffusion", "data", "parallel", "trainer", "slurm", "scaling")


@dataclass(frozen=True)
class Source:
    """One Python file, named as in the repository: `model/dit.py`."""

    name: str

    @cached_property
    def text(self) -> str:
        return (ROOT / self.name).read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.name)

    @property
    def package(self) -> str:
        return self.name.split("/")[0]

    def imports(self) -> set[str]:
        """Dotted names of all modules imported anywhere in the file, inside functions too."""
        found: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        return found

    def dotted(self) -> set[str]:
        """Every dotted expression that starts from a plain name: `os.environ`, `torch.load`."""
        return {ast.unparse(node) for node in ast.walk(self.tree) if isinstance(node, ast.Attribute)}


@pytest.fixture(scope="session")
def sources() -> list[Source]:
    names = sorted(
        str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.is_file()
    )
    assert len(names) > len(PACKAGES), f"no sources under {ROOT}"
    return [Source(name) for name in names]
