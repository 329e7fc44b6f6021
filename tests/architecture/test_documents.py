"""What README, the pages and the headers tell a user to type works, and what they point at is there."""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from data.clips import read_clips
from data.lattice import ClipConfig
from parallel.legality import require_legal
from tests.data.media import video
from trainer.compose import to_dataclass
from trainer.config import TrainConfig, workload
from trainer.train import jobs_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HEADERS = [ROOT / "slurm/train.sbatch", ROOT / "trainer/train.py", *sorted((ROOT / "conf").rglob("*.yaml"))]


@dataclass(frozen=True)
class Command:
    """A command for `trainer.train` as it is written somewhere, and the ranks it says it starts."""

    place: str
    ranks: int
    overrides: tuple[str, ...]


def lines(path: Path) -> list[str]:
    """Lines that may hold a command: those of a page, or the comments and docstring that a file begins with."""
    text = path.read_text().replace("\\\n", " ")
    if path.suffix != ".md":
        text = text.split("\nset -euo")[0].split("\nimport ")[0].replace("\n#", "\n").removeprefix("#")
    return [line.strip() for line in text.split("\n")]


def parsed(line: str, place: str) -> list[Command]:
    """The runs of a line: several of a sweep, none where it is not of `trainer.train` or only a shape (`...`)."""
    if not re.match(r"(\w+=\S+ )*(python|torchrun|sbatch) ", line) or "..." in line:
        return []
    words = shlex.split(line, comments=True)
    if "slurm/train.sbatch" in words and "-m" not in words:
        start = words.index("slurm/train.sbatch")
    elif "trainer.train" in words:
        start = words.index("trainer.train")
    else:
        return []
    sizes = {name: int(words[words.index(name) + 1]) for name in SIZES if name in words[:start]}
    ranks = 1
    for size in sizes.values():
        ranks *= size
    given = words[start + 1 :]
    return [Command(place, ranks, tuple(job)) for job in (jobs_of(given) if "-m" in given else [given])]


SIZES = ("--nproc-per-node", "--nodes", "--gpus-per-node")
COMMANDS = [
    command
    for path in (*PAGES, *HEADERS)
    for line in lines(path)
    for command in parsed(line, str(path.relative_to(ROOT)))
]


def test_the_commands_are_found():
    """A pattern that no longer matches must not pass for a page without mistakes."""
    places = [command.place for command in COMMANDS]
    assert places.count("README.md") >= 3
    expected = {"docs/slurm.md", "docs/data.md", "slurm/train.sbatch", "trainer/train.py", "conf/experiment/demo.yaml"}
    assert expected | {f"conf/parallel/{path.name}" for path in (ROOT / "conf/parallel").glob("*.yaml")} <= {*places}
    assert {1, 2, 4, 8, 32} <= {command.ranks for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.place} {' '.join(command.overrides)}")
def test_a_command_for_training_starts_on_the_ranks_it_says(command):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("train", list(command.overrides))
    for key in OmegaConf.missing_keys(composed):
        OmegaConf.update(composed, key, "given-by-the-user")
    config = to_dataclass(TrainConfig, composed)
    require_legal(config.parallel, workload(config), command.ranks)


def folder_of(*overrides: str) -> str:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return str(compose("train", list(overrides)).folder)


def test_commands_of_one_page_do_not_write_into_each_other():
    for page in PAGES:
        commands = [command for command in COMMANDS if command.place == str(page.relative_to(ROOT))]
        folders = [folder_of(*command.overrides) for command in commands]
        assert len({*folders}) == len(folders), page


def test_each_name_is_a_run_of_its_own_and_none_is_that_of_make_demo():
    folders = [folder_of(), *(folder_of(*words) for words in (["experiment=demo"], ["experiment=demo", "name=a"]))]
    folders.append(folder_of("experiment=demo", "debug=overfit"))
    assert folders == ["runs/run", "runs/demo-dit", "runs/a", "runs/overfit"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    local = [target for target in targets if target and not re.match(r"\w+:", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_pages_python_writes_clip_shards_of_own_videos(tmp_path):
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    (tmp_path / "footage").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / f"footage/{name}.mp4").write_bytes(video(frames=24, height=48, width=64))
        (tmp_path / f"footage/{name}.txt").write_text(f"a {name} walks")
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code[1]], cwd=tmp_path, env=environment, check=True, timeout=120)

    clips = list(read_clips(tmp_path / "runs/own/clips", ClipConfig(fps=8.0, max_frames=17)))
    assert [(clip.key, clip.captions["descriptive"]) for clip in clips] == [
        ("cat", "a cat walks"),
        ("dog", "a dog walks"),
    ]
