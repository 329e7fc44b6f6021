"""Finds, in the program's text, every place that issues a collective or asks an engine for one."""

import ast
from dataclasses import dataclass

from mutant_runs import ROOT

LOCAL = {
    "dist": {
        "ReduceOp",
        "DistError",
        "FileStore",
        "HashStore",
        "PrefixStore",
        "Store",
        "rendezvous",
        "get_global_rank",
        "get_process_group_ranks",
        "get_rank",
        "get_world_size",
        "is_initialized",
        "init_process_group",
        "destroy_process_group",
    },
    "megatron": {"ModelParallelConfig", "TransformerConfig", "parallel_state"},
    "deepspeed": {"destroy", "get_global_grad_norm", "get_param_id", "_optimizer_step", "_pre_step", "zero_grad"},
}
"""What sends no message, or makes groups; everything else of these is taken to be a collective."""
OURS = {"_sum", "_SumGradient.apply", "_SumBothWays.apply", "sum_over_stages", "check_replicas"}
OF_GRID = {"any", "sum_over_data", "sum_over_ranks", "gather_objects", "barrier"}
OF_LAYERS = {"replicated", "scatter_sequence", "gather_sequence", "gather_tokens", "gather_heads"}
ASKING = {"allreduce_dgrad", "sequence_parallel", "tensor_parallel_output_grad", "sequence", "mpu", "batch_p2p_comm"}
"""Keywords that ask an engine for collectives or for a kind of them."""
MEASURING = ("parity.py", "activations.py")
"""They run no training step: reductions of the first stand in for DeepSpeed's, the second sends nothing."""
ASKED_IN = ("model/attention.py", "model/block.py", "model/dit.py")


@dataclass(frozen=True)
class Site:
    """A place that a mutant must cover."""

    file: str
    function: str
    text: str
    lines: range

    def __str__(self):
        return f"{self.file} {self.function}: {self.text}"


def all_sites():
    """Of `parallel/` but for what measures it, and of the files of `model/` that ask its layers."""
    files = sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "parallel").glob("*.py") if path.name not in MEASURING
    )
    return [site for file in (*files, *ASKED_IN) for site in _Finder(file).sites]


def is_covered(site, mutant):
    """Whether a mutant changes a line of the site (of its name, for calls)."""
    return mutant.file == site.file and bool(set(changed_lines(mutant)) & set(site.lines))


def changed_lines(mutant):
    """Numbers of the lines of its file that a mutant changes; of an insertion, those it names."""
    source = (ROOT / mutant.file).read_text()
    first = source[: source.index(mutant.old)].count("\n") + 1
    old, new = (text.removesuffix("\n").split("\n") for text in (mutant.old, mutant.new))
    before, after = _common(old, new), _common(old[::-1], new[::-1])
    if before + after >= len(old):
        return range(first, first + len(old))
    return range(first + before, first + len(old) - after)


def _common(some, others):
    return next((i for i, (a, b) in enumerate(zip(some, others)) if a != b), min(len(some), len(others)))


class _Finder(ast.NodeVisitor):
    def __init__(self, file):
        self.file, self.sites, self._inside = file, [], []
        self._imported = {"megatron": set(), "deepspeed": set(), "torch.distributed": set()}
        self._engine_classes = set()
        self.visit(ast.parse((ROOT / file).read_text()))

    def visit_ImportFrom(self, node):
        if node.module == "torch.distributed.run":  # the launcher, which starts ranks and is none
            return
        for engine, names in self._imported.items():
            if f"{node.module}.".startswith(f"{engine}."):
                names.update(alias.asname or alias.name for alias in node.names)

    def visit_ClassDef(self, node):
        if any(isinstance(base, ast.Name) and base.id in self._imported["megatron"] for base in node.bases):
            self._engine_classes.add(node.name)
        self._visit_inside(node)

    def visit_FunctionDef(self, node):
        self._visit_inside(node)

    def _visit_inside(self, node):
        self._inside.append(node.name)
        self.generic_visit(node)
        self._inside.pop()

    def visit_Call(self, node):
        callee = ast.unparse(node.func)
        if self._is_collective(callee):
            self._add(node.func, ast.unparse(node))
        for keyword in node.keywords:
            if keyword.arg in ASKING:
                self._add(keyword.value, ast.unparse(keyword))
        self.generic_visit(node)

    def visit_Attribute(self, node):
        """Collectives of torch that are handed on instead of called; calls are there already."""
        if ast.unparse(node.value) in ("dist", "torch.distributed") and node.attr not in LOCAL["dist"]:
            self._add(node, ast.unparse(node))
        self.generic_visit(node)

    def _is_collective(self, callee):
        *owner, name = callee.split(".")
        if name in LOCAL["deepspeed"] or callee.startswith("parallel_state."):
            return False
        if owner == ["dist"] or owner == ["torch", "distributed"]:
            return name not in LOCAL["dist"]
        if callee in self._imported["megatron"]:
            return callee not in LOCAL["megatron"]
        if callee in self._imported["deepspeed"] | self._imported["torch.distributed"] or any(
            callee.startswith(start) for start in ("self._engine", "self._optimizer", "deepspeed.")
        ):
            return True
        if callee == "super().forward":
            return self._inside[0] in self._engine_classes
        if name in OF_GRID and owner and owner[-1] == "grid":
            return True
        return callee in OURS or (name in OF_LAYERS and owner[-1:] == ["layers"])

    def _add(self, node, text):
        lines = range(node.lineno, node.end_lineno + 1)
        inside = ".".join(self._inside) or "module"
        if not any(site.lines == lines and site.text.startswith(text) for site in self.sites):
            self.sites.append(Site(self.file, inside, text, lines))
