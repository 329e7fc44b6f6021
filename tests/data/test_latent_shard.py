import io
import json

import numpy as np
import pytest
import torch
import xxhash
from safetensors.torch import save

from data.latent_shard import parse_tensors, read_latent_shard
from tests.data.foreign_set import members, write_tar


def problems_of(folder, samples):
    write_tar(folder / "a.tar", samples)
    return [str(problem) for problem in read_latent_shard(str(folder), "a.tar").problems]


def test_places_and_shapes_are_those_in_the_file(tmp_path):
    samples = {
        f"k{n}": members(n, dtype=dtype) for n, dtype in enumerate((torch.float16, torch.bfloat16, torch.float32))
    }
    write_tar(tmp_path / "a.tar", samples)
    contents = read_latent_shard(str(tmp_path), "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    assert (contents.info.bytes, contents.info.count, contents.problems) == (len(data), 3, ())
    for sample in contents.samples:
        for extension, place in sample.places.items():
            content = data[place.offset : place.offset + place.size]
            assert content == samples[sample.key][extension]
            assert place.xxh3 == xxhash.xxh3_64_intdigest(content)
        assert (sample.latent_shape, sample.text_dim, sample.fps) == ((4, 3, 4, 6), 8, 8.0)


def array(value):
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    return file.getvalue()


def with_latent(tensors):
    return members() | {"latent.safetensors": save(tensors)}


def with_text(tensors):
    return members() | {"text.safetensors": save(tensors)}


NAN, INF = torch.zeros(4, 3, 4, 6), torch.zeros(4, 3, 4, 6)
NAN[0, 1, 2, 3], INF[3, 2, 3, 5] = torch.nan, -torch.inf


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (members() | {"json": b"{"}, "bad json: "),
        (members() | {"json": b"[]"}, "no captions: json needs"),
        (members(captions={}), "no captions: json needs"),
        (members(captions={"short": " "}), "empty caption: short"),
        (
            members(captions={"short": "a", "long": "b"}),
            "captions differ: the json has long, short, the embeddings are short",
        ),
        (members(fps=-1), "bad json: fps=-1 must be a number above 0"),
        (members(fps=10**400), "bad json: fps=1000"),
        (members(fps=float("nan")), "bad json: fps=nan"),
        (members() | {"json": b"[" * 100_000}, "bad json: maximum recursion depth"),
        (members(source="\ud800"), "bad json: source='\\ud800' must be a text"),
        (members(fps="8"), "bad json: fps='8'"),
        (members(source=3), "bad json: source=3 must be a text"),
        (members(split="test"), "bad json: split='test' is none of train, heldout"),
        (members() | {"latent.safetensors": b"\x80\x04junk"}, "broken latent: no safetensors file"),
        (members() | {"text.safetensors": members()["text.safetensors"][:-1]}, "broken text: no safetensors file"),
        (with_latent({"x": NAN}), "wrong shape: tensor `latent` is missing beside x"),
        (with_latent({"latent": NAN[0]}), "wrong shape: tensor `latent` has shape (3, 4, 6)"),
        (with_latent({"latent": NAN[:, :0]}), "wrong shape: tensor `latent` has shape (4, 0, 4, 6)"),
        (with_latent({"latent": NAN}), "not finite: NaN or Inf: tensor 'latent' of the latent"),
        (with_latent({"latent": INF.half()}), "not finite: NaN or Inf: tensor 'latent' of the latent"),
        (with_latent({"latent": INF.bfloat16()}), "not finite: NaN or Inf: tensor 'latent' of the latent"),
        (with_latent({"latent": INF.double()}), "not finite: NaN or Inf: tensor 'latent' of the latent"),
        (with_latent({"latent": torch.zeros(4, 3, 4, 6, dtype=torch.int8)}), "wrong type I8, none of F16"),
        (with_text({"short": torch.zeros(0, 8)}), "empty caption: text 'short' has no tokens"),
        (with_text({"short": torch.zeros(8)}), "wrong shape: text 'short' has shape (8,)"),
        (with_text({"short": torch.full((2, 8), torch.nan)}), "not finite: NaN or Inf: tensor 'short' of the text"),
        ({"json": b"{}"}, "incomplete: no .latent.safetensors, no .text.safetensors beside .json"),
        (members() | {"extra.npy": array(np.array([print]))}, "pickle member or broken array: Object arrays"),
        (members() | {"latent.pkl": b""}, "member 'k.latent.pkl' at byte 7168: pickle member"),
    ],
)
def test_what_is_wrong_with_a_sample_is_told_with_its_key(tmp_path, parts, message):
    lines = problems_of(tmp_path, {"good": members(5), "k": parts, "last": members(6)})
    assert lines
    assert all(line.startswith("a.tar: k: ") for line in lines), "the neighbours are good"
    assert any(message in line for line in lines), lines


def test_arrays_named_npy_are_looked_into(tmp_path):
    assert problems_of(tmp_path, {"k": members() | {"npy": array(np.zeros(3))}}) == []
    [line] = problems_of(tmp_path, {"k": members() | {"npy": array(np.array([print]))}})
    assert "pickle member or broken array" in line


def test_other_members_are_counted(tmp_path):
    write_tar(tmp_path / "a.tar", {f"k{n}": members(n) | {"png": b"x", "txt": b"y"} for n in range(3)})
    contents = read_latent_shard(str(tmp_path), "a.tar")
    assert (contents.unused, contents.num_problems) == ({"png": 3, "txt": 3}, 0)


def test_a_shard_of_nothing_but_problems_tells_a_number_of_them(tmp_path):
    write_tar(tmp_path / "a.tar", {f"k{n}": {"json": b"{}"} for n in range(500)})
    contents = read_latent_shard(str(tmp_path), "a.tar")
    assert (contents.num_problems, len(contents.problems), contents.samples) == (500, 200, ())


def test_the_largest_finite_numbers_are_finite():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        most = torch.tensor(
            [torch.finfo(dtype).max, torch.finfo(dtype).min, torch.finfo(dtype).tiny, -0.0], dtype=dtype
        )
        tensors = parse_tensors(save({"x": most}))
        assert (tensors.shapes, tensors.unfit) == ({"x": (4,)}, {})


def test_captions_are_read_from_the_json_alone(tmp_path):
    plain = {"captions": {"short": "a"}}
    write_tar(tmp_path / "a.tar", {"k": members() | {"json": json.dumps(plain).encode()}})
    [sample] = read_latent_shard(str(tmp_path), "a.tar").samples
    assert (sample.source, sample.split, sample.fps, sample.text_lengths) == (None, None, None, {"short": 3})
