import json
import math

import pytest
import safetensors.torch
import torch

from data.sample import Memory, is_finite, tensors_in


def memory_of(content, *, start=0):
    data = bytes(start) + content
    return Memory(torch.frombuffer(bytearray(data + bytes(-len(data) % 8)), dtype=torch.uint8))


@pytest.mark.parametrize("start", [0, 64, 61])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_are_what_safetensors_reads(dtype, start):
    tensors = {"a": torch.randn(3, 1, 5).to(dtype), "b": torch.randn(7).to(dtype), "none": torch.zeros(0, 4).to(dtype)}
    content = safetensors.torch.save(tensors, metadata={"made": "here"})
    found = tensors_in(memory_of(content, start=start), start, len(content))
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == dtype and torch.equal(found[name], tensors[name]) for name in tensors)


def test_tensors_view_the_memory():
    content = safetensors.torch.save({"a": torch.zeros(4)})
    memory = memory_of(content)
    found = tensors_in(memory, 0, len(content))["a"]
    memory.tensor[len(content) - 16 : len(content)] = 255
    assert bool(found.isnan().all())


def file(header, data=b"", *, length=None):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        file({}, length=1 << 40),
        file({}, length=0),
        file(b"not json"),
        file(entry(), bytes(4)),
        file(entry(offsets=(4, 8)), bytes(8)),
        file(entry(offsets=(-8, 0)), bytes(8)),
        file(entry(offsets=(8, 0)), bytes(8)),
        file(entry(shape=(-1, -2)), bytes(8)),
        file(entry(dtype="I64", shape=(1,)), bytes(8)),
    ],
)
def test_a_header_that_lies_is_refused(content):
    with pytest.raises((ValueError, KeyError, TypeError)):
        tensors_in(memory_of(content + bytes(8)), 0, len(content))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_is_what_torch_calls_finite(dtype):
    limits = torch.finfo(dtype)
    good = torch.tensor([0.0, -0.0, limits.max, limits.min, limits.tiny, -limits.tiny, 1.5, -2.0], dtype=dtype)
    assert is_finite(good)
    for bad in (math.nan, -math.nan, math.inf, -math.inf):
        for place in range(len(good)):
            spoilt = good.clone()
            spoilt[place] = bad
            assert not is_finite(spoilt)
    assert is_finite(torch.zeros(0, dtype=dtype))
