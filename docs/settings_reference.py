"""The pages of settings: every field of every command's config, from its dataclass and its YAML."""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from trainer.compose import in_words

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that Hydra composes a config for."""

    module: str
    kind: str
    """Its dataclass."""
    root: str
    """Its YAML in `conf/`."""


def commands() -> list[Command]:
    """Every module with `@hydra.main`, as its source says."""
    found = []
    for path in sorted(path for package in ("trainer", "slurm", "scaling") for path in (ROOT / package).glob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        roots = [
            word.value.value
            for call in calls
            if ast.unparse(call.func) == "hydra.main"
            for word in call.keywords
            if word.arg == "config_name" and isinstance(word.value, ast.Constant)
        ]
        kinds = [ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func) == "to_dataclass"]
        if roots:
            found.append(Command(module=f"{path.parent.name}.{path.stem}", kind=kinds[0], root=str(roots[0])))
    return found


def write_pages(folder: Path) -> list[Path]:
    """A page for each command, `NAME.md`, and `index.md`, which lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    known = commands()
    pages = []
    for command in known:
        pages.append(folder / f"{command.module}.md")
        pages[-1].write_text(page(command), encoding="utf-8")
    listed = "\n".join(command.module for command in known)
    index = folder / "index.md"
    index.write_text(
        "# Settings\n\nOne page a command, from the config dataclasses and `conf/`. Any of them goes on the command "
        f"line as `KEY=VALUE`; `--cfg job` prints what a command line amounts to.\n\n```{{toctree}}\n{listed}\n```\n",
        encoding="utf-8",
    )
    return [*pages, index]


def page(command: Command) -> str:
    """Markdown of one command's settings."""
    module = importlib.import_module(command.module)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = OmegaConf.to_container(compose(command.root), resolve=False)
    about = inspect.getdoc(module) or ""
    title, _, rest = about.partition("\n")
    lines = [f"# {command.module}", "", title, ""]
    if rest.strip():
        lines += ["```text", textwrap.dedent(rest).strip("\n"), "```", ""]
    comments = yaml_comments(ROOT / "conf" / f"{command.root}.yaml")
    for heading, table in sections(getattr(module, command.kind), composed, comments, prefix=""):
        lines += [f"## {heading}" if heading else "## The command's own", "", *table, ""]
    lines += groups(command.root)
    return "\n".join(lines)


def sections(kind: type, given: Any, comments: dict[str, str], prefix: str) -> Iterator[tuple[str, list[str]]]:
    """Heading and table of a dataclass, then of those inside it."""
    hints, told = get_type_hints(kind), field_docstrings(kind)
    rows, inner = [], []
    for field in fields(kind):
        key, hint = prefix + field.name, hints[field.name]
        value = given.get(field.name, default_of(field)) if isinstance(given, dict) else default_of(field)
        group = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
        if isinstance(group, type) and not get_args(hint):
            inner.append((group, value, key))
            continue
        meaning = told.get(field.name) or comments.get(key, "")
        shown = "required" if value in ("???", MISSING) else f"`{in_yaml(value)}`"
        rows.append(f"| `{key}` | {in_words(hint)} | {shown} | {cell(meaning)} |")
    if rows:
        about = [cell(inspect.getdoc(kind) or ""), "", "| setting | takes | default | meaning |", "|---|---|---|---|"]
        yield prefix.rstrip("."), [*about, *rows]
    for group, value, key in inner:
        yield from sections(group, value, comments, f"{key}.")


def default_of(field: "Field[Any]") -> Any:
    """What a setting is that no YAML gives, as plain lists and dicts; MISSING where it must be given."""
    if field.default_factory is not MISSING:
        return plain(field.default_factory())
    return plain(field.default)


def plain(value: Any) -> Any:
    """A default as YAML would hold it."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def field_docstrings(kind: type) -> dict[str, str]:
    """The text under each field of a dataclass."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and is_text:
            found[before.target.id] = inspect.cleandoc(str(after.value.value))
    return found


def yaml_comments(path: Path) -> dict[str, str]:
    """`data.window` -> what the comment beside it in a YAML says."""
    found, keys = {}, []
    for line in path.read_text(encoding="utf-8").splitlines():
        before, _, comment = line.partition("  # ")
        name, colon, _ = before.strip().partition(":")
        if colon and not before.lstrip().startswith(("-", "#")):
            depth = (len(before) - len(before.lstrip())) // 2
            keys = [*keys[:depth], name]
            if comment:
                found[".".join(keys)] = comment.strip()
    return found


def groups(root: str) -> list[str]:
    """What can be chosen for each group of a root YAML."""
    defaults = yaml.safe_load((ROOT / "conf" / f"{root}.yaml").read_text(encoding="utf-8")).get("defaults", [])
    names = [name for entry in defaults if isinstance(entry, dict) for name in entry if not name.startswith("override")]
    if not names:
        return []
    lines = ["## Groups", "", "| group | options |", "|---|---|"]
    for name in names:
        options = sorted(path.stem for path in (ROOT / "conf" / name.split("@")[0]).glob("*.yaml"))
        lines.append(f"| `{name}` | {', '.join(f'`{option}`' for option in options)} |")
    return [*lines, ""]


def in_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def cell(text: str) -> str:
    """One line that a table can hold."""
    return " ".join(text.split()).replace("|", "\\|")
