"""The table of legal layouts: each rule refuses with its arithmetic, and what is suggested instead is legal."""

import re
from dataclasses import fields, replace
from itertools import product
from pathlib import Path

import pytest

from parallel.dims import ParallelDims
from parallel.legality import RULES, Workload, nearest_legal, require_legal, table

WORK = Workload(num_heads=12, ffn_dim=48, num_blocks=6, tokens_per_pack=1024, packs_per_step=8)


@pytest.mark.parametrize(
    ("options", "work", "world", "message"),
    [
        (
            {"tensor": 8},
            {},
            8,
            r"tensor=8 does not divide model.num_heads=12 \(12 = 1 x 8 \+ 4\); .* is parallel.tensor=4$",
        ),
        ({"tensor": 2, "context": 4}, {}, 8, r"tensor=2 x context=4 does not divide model.num_heads=12 .* \S+$"),
        (
            {"tensor": 4},
            {"ffn_dim": 50},
            4,
            r"tensor=4 does not divide model.ffn_dim=50 \(50 = 12 x 4 \+ 2\); .*tensor=2",
        ),
        (
            {"pipeline": 8},
            {},
            8,
            r"pipeline=8 makes 8 stages, .*num_blocks is 6; .* 8 processes is parallel.pipeline=4",
        ),
        (
            {"pipeline": 4, "virtual_pipeline": 2},
            {},
            4,
            r"pipeline=4 x virtual_pipeline=2 makes 4 x 2 = 8 stages, .*num_blocks is 6; .* is parallel.pipeline=2$",
        ),
        (
            {"pipeline": 2, "blocks_per_stage": (3, 2)},
            {},
            2,
            r"blocks_per_stage=\[3, 2\] gives 5 blocks to 2 stages, but the model has 6 .*blocks_per_stage=null",
        ),
        (
            {"context": 3},
            {},
            3,
            r"tokens_per_pack=1024 cannot be cut into 3 equal shards .* use 1023 or 1026 tokens; .*",
        ),
        (
            {"data": 3},
            {},
            3,
            r"packs_per_step=8 cannot be shared by parallel.data=3 .*\(8 = 2 x 3 \+ 2\): use 6 or 9 .*",
        ),
        (
            {"pipeline": 2, "zero_stage": 3},
            {},
            2,
            r"pipeline=2 goes with parallel.zero_stage=1, not 3; .*zero_stage=1$",
        ),
        ({"precision": "bf16", "zero_stage": 0}, {}, 2, r"bf16 needs parallel.zero_stage=1 or more, not 0; .*stage=1$"),
        ({"virtual_pipeline": 2}, {}, 2, r"virtual_pipeline=2 interleaves stages, but parallel.pipeline is 1; .*"),
        (
            {"pipeline": 2, "virtual_pipeline": 2},
            {"packs_per_step": 1},
            2,
            r"virtual_pipeline=2 needs at least parallel.pipeline=2 packs on each replica, .* = 1: use 2 packs; .*=1$",
        ),
        (
            {"tensor": 2, "pipeline": 2},
            {},
            6,
            r"2 x 1 x 2 = 4 .* does not divide 6; start 4 or 8 processes, .* nearest .*",
        ),
        ({"data": 3}, {}, 4, r"parallel.data is 3, but 4 processes / .* = 4; .*; the nearest .* is parallel.data=4$"),
    ],
)
def test_illegal_layouts_are_refused_with_the_arithmetic_and_a_way_out(options, work, world, message):
    with pytest.raises(ValueError) as refusal:
        require_legal(ParallelDims(**options), replace(WORK, **work), world)
    text = str(refusal.value).removesuffix(".")
    assert re.search(message, text), text
    assert "\n" not in text


def changed(text: str) -> dict[str, int | None]:
    pairs = re.findall(r"parallel\.(\w+)=(\w+)", text.rsplit("nearest legal layout", 1)[1])
    return {name: None if value == "null" else int(value) for name, value in pairs}


@pytest.mark.parametrize("world", [1, 2, 6, 8, 12, 24])
def test_what_is_suggested_is_legal_and_changes_no_legal_layout(world):
    refused = 0
    names = ("tensor", "context", "pipeline", "virtual_pipeline", "zero_stage", "precision")
    for values in product((1, 2, 3), (1, 2, 4), (1, 2, 8), (1, 2), (0, 1, 3), ("fp32", "bf16")):
        dims = ParallelDims(**dict(zip(names, values, strict=True)))
        try:
            resolved = require_legal(dims, WORK, world)
        except ValueError as refusal:
            refused += 1
            if "no layout of" in str(refusal) or "nearest" not in str(refusal):
                assert nearest_legal(dims, WORK, world) is None
                continue
            require_legal(replace(dims, **changed(str(refusal))), WORK, world)
        else:
            assert nearest_legal(dims, WORK, world) == resolved
    assert refused


def test_a_layout_that_nothing_can_save_is_refused_without_a_suggestion():
    with pytest.raises(ValueError, match=r"use 7 or 14 packs; no layout of 7 processes is legal for this model"):
        require_legal(ParallelDims(), replace(WORK, packs_per_step=6, num_heads=1, num_blocks=1), 7)


def test_every_rule_can_be_broken():
    """A rule that nothing breaks would be a sentence in a table and no more."""
    dims = [
        ParallelDims(tensor=5), ParallelDims(tensor=2), ParallelDims(pipeline=9), ParallelDims(blocks_per_stage=(1,)),
        ParallelDims(context=3), ParallelDims(pipeline=2, zero_stage=2), ParallelDims(zero_stage=0, precision="bf16"),
        ParallelDims(virtual_pipeline=2), ParallelDims(pipeline=4, virtual_pipeline=2), ParallelDims(data=3),
    ]  # fmt: skip
    work = replace(WORK, ffn_dim=49, packs_per_step=2)
    resolved = [d.resolve(d.model_size * (d.data or 1)) for d in dims]
    for rule in RULES:
        assert any(rule.broken(d, work) for d in resolved), rule.law


def test_the_documented_table_is_the_one_that_decides():
    page = Path(__file__).parents[2] / "docs" / "layouts.md"
    assert table() in page.read_text()


def test_the_laws_name_real_settings():
    known = {field.name for kind in (ParallelDims, Workload) for field in fields(kind)} | {"x", "bf16", "with"}
    for rule in RULES:
        for code in re.findall(r"`([^`]*)`", rule.law):
            assert set(re.findall(r"[a-z_0-9]{2,}", code.replace("model.", "").replace("data.", ""))) <= known, code
