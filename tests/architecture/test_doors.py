"""Each foreign engine has one door, and the model does not know where it runs."""

import ast

DOORS = {
    "megatron": ("parallel/",),
    "deepspeed": ("parallel/",),
    "webdataset": ("data/",),
    "av": ("data/",),
    "pyarrow": ("data/",),
    "transformers": ("model/text.py",),
    "wandb": ("trainer/metrics.py", "scaling/wandb_runs.py"),
    "matplotlib": ("scaling/law_plot.py", "scaling/coordinate_check.py"),
    "plotly": ("scaling/law_plot.py",),
    "diffusers": (),
}
ENVIRONMENT_READERS = {
    "parallel/__init__.py": "sets the accelerator that DeepSpeed would look for on import",
    "parallel/launch.py": "what the launcher says: rank, world size, local rank",
    "parallel/environment.py": "sets what the engines read, where the user has not",
    "parallel/worlds.py": "sets up the processes it starts, as a launcher would",
    "trainer/compose.py": "whether to show the traceback of a user's mistake",
}
HYDRA_ERRORS = {
    "trainer/compose.py": {"hydra.errors", "hydra.errors.HydraException", "hydra.errors.MissingConfigException"}
}
"""It turns Hydra's refusals into one sentence."""
UNSAFE_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
UNSAFE_CALLS = {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"}


def is_entry_point(source) -> bool:
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in source.tree.body
    )


def test_engines_are_imported_only_through_their_door(sources):
    broken = [
        f"{source.name} imports {name}"
        for source in sources
        for name in sorted(source.imports())
        if (doors := DOORS.get(name.split(".")[0])) is not None and not source.name.startswith(tuple(doors) or "none")
    ]
    assert not broken


def test_hydra_is_imported_only_by_entry_points(sources):
    broken = [
        source.name
        for source in sources
        if any(name.split(".")[0] == "hydra" for name in source.imports() - HYDRA_ERRORS.get(source.name, set()))
        and not (is_entry_point(source) and source.package in ("trainer", "slurm", "scaling"))
    ]
    assert not broken


def test_model_and_diffusion_do_not_know_the_cluster(sources):
    words = ("torch.distributed", "os.environ", "os.getenv", ".cuda(", "world_size", "process_group", "get_rank")
    broken = [
        f"{source.name}: {word}"
        for source in sources
        if source.package in ("model", "diffusion")
        for word in words
        if word in ast.unparse(source.tree)
    ]
    assert not broken


def test_environment_variables_are_read_in_few_files(sources):
    readers = {source.name for source in sources if {"os.environ", "os.getenv"} & source.dotted()}
    assert readers <= ENVIRONMENT_READERS.keys(), "a setting belongs in a config dataclass"


def test_nothing_that_runs_code_from_a_file_is_used(sources):
    broken = []
    for source in sources:
        broken += [f"{source.name} imports {name}" for name in sorted(UNSAFE_IMPORTS & source.imports())]
        broken += [f"{source.name} uses {name}" for name in sorted(UNSAFE_CALLS & source.dotted())]
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Attribute) and node.attr == "extractall":
                broken.append(f"{source.name}:{node.lineno} extracts an archive unchecked")
            if isinstance(node, ast.Call) and any(
                word.arg == "shell" and ast.unparse(word.value) != "False" for word in node.keywords
            ):
                broken.append(f"{source.name}:{node.lineno} starts a shell")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec", "instantiate"):
                broken.append(f"{source.name}:{node.lineno} calls {ast.unparse(node.func)}")
    assert not broken
