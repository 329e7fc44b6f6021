"""`python -m trainer.layout` as a user meets it: one table, or one sentence."""

import re

import pytest

from trainer.layout import HEADINGS, size

WAN = ("model=wan_14b", "world_size=1024", "parallel.pipeline=8")


def run(commands, tmp_path, *words):
    return commands.run(words, cwd=tmp_path, module="trainer.layout")


def rows(printed):
    """{ranks: {heading: cell}} of the table."""
    lines = [re.split(r" {2,}", line.strip()) for line in printed.splitlines()]
    start = lines.index(list(HEADINGS))
    cells = [line for line in lines[start + 1 :] if len(line) == len(HEADINGS)]
    return {line[0]: dict(zip(HEADINGS, line, strict=True)) for line in cells}


def test_wan_14b_on_1024_ranks(commands, tmp_path):
    printed = run(commands, tmp_path, *WAN, "parallel.tensor=8", "data.tokens_per_pack=32768").ok().err
    assert "14,288,496,704 parameters, each of them found once" in printed
    assert "8 tensor with sequence parallelism x 8 pipeline x 16 data, ZeRO-1, bf16, 1024 in all" in printed
    table = rows(printed)
    assert list(table) == [f"{128 * place}-{128 * place + 127}" for place in range(8)]
    assert [row["blocks"] for row in table.values()] == [f"{5 * place}-{5 * place + 4}" for place in range(8)]
    first = table["0-127"]
    assert (first["parameters"], first["weights"], first["gradients"]) == ("452,254,400", "863 MiB", "1.68 GiB")
    assert f"fullest: ranks 0-127, {first['total']} each" in printed
    assert "messages: 40.0 MiB a pack" in printed
    assert not list(tmp_path.iterdir())


def test_uneven_and_interleaved_stages_on_as_many_ranks_as_they_need(commands, tmp_path):
    words = ("model=demo", "parallel.pipeline=2", "parallel.virtual_pipeline=2", "parallel.blocks_per_stage=[1,1,1,1]")
    ended = run(commands, tmp_path, *words).ok()
    assert {ranks: row["blocks"] for ranks, row in rows(ended.err).items()} == {"0": "0,2", "1": "1,3"}
    assert "packs: not known without data.tokens_per_pack" in ended.err


def test_float32_leaves_the_estimate_out(commands, tmp_path):
    words = ("parallel=dp2", "parallel.zero_stage=0", "parallel.precision=fp32", "data.tokens_per_pack=64")
    ended = run(commands, tmp_path, *words).ok()
    assert {row["packs"] for row in rows(ended.err).values()} == {"?"}
    assert "packs: estimated in bf16 only" in ended.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            (*WAN, "parallel.tensor=8", "parallel.context=2"),
            r"tensor=8 x context=2 does not divide .*heads=40 .*r=4\.$",
        ),
        (("world_size=0",), r"world_size=0 must be at least 1, or null$"),
        (("data.tokens_per_pack=0",), r"data\.tokens_per_pack=0 must be at least 1, or null$"),
        (("world_size=3", "parallel.tensor=2"), r"3 processes cannot hold whole copies .* divide 3; .*"),
        (("parallel.zero_stage=0",), r"bf16 needs parallel\.zero_stage=1 or more, not 0; .*zero_stage=1\.$"),
    ],
)
def test_a_mistake_is_one_sentence(commands, tmp_path, words, sentence):
    assert re.search(sentence, run(commands, tmp_path, *words).refused())


def test_a_launcher_is_refused(commands, tmp_path):
    ended = commands.run(("model=tiny",), cwd=tmp_path, module="trainer.layout", ranks=2)
    assert "trainer.layout is for one process, but 2 were started" in ended.refused()


@pytest.mark.parametrize(
    ("number", "words"), [(5, "5 B"), (1024, "1.00 KiB"), (40 * 2**20, "40.0 MiB"), (2**30 * 123.4, "123 GiB")]
)
def test_sizes_in_words(number, words):
    assert size(int(number)) == words
