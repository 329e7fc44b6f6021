"""The benchmark compares like with like: both models give the same predictions and gradients."""

import re
import sys

import torch
from diffusers import WanTransformer3DModel

from bench import dit as bench
from model.dit import DiTConfig, VideoDiT
from model.wan_weights import config_to_wan, from_wan

CONFIG = DiTConfig(num_blocks=2, num_heads=2, head_dim=16, ffn_dim=64, text_dim=24)


def test_every_way_of_running_gives_the_same_predictions_and_gradients():
    torch.manual_seed(0)
    wan = WanTransformer3DModel(**config_to_wan(CONFIG))
    dit = VideoDiT(CONFIG)
    dit.load_state_dict(from_wan(wan.state_dict(), CONFIG))
    batch = bench.samples(CONFIG)
    alone = bench.run_wan(wan, [[sample] for sample in batch])
    theirs = {name: parameter.grad.clone() for name, parameter in wan.named_parameters()}
    wan.zero_grad()
    grouped = bench.run_wan(wan, bench.by_size(batch))
    packed = bench.run_pack(dit, batch)
    for a, b, c in zip(alone, grouped, packed, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        torch.testing.assert_close(a, c, rtol=0, atol=1e-5)
    expected = from_wan(theirs, CONFIG)
    for name, parameter in dit.named_parameters():
        if name != "conditioning.condition_embedding":
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6)


def test_it_prints_a_row_for_each_way(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.dit", "--model", "tiny", "--repeats", "1"])
    bench.main()
    rows = re.findall(r"^  (\w+),.* ms a step +[\d,]+ tokens/s$", capsys.readouterr().out, flags=re.MULTILINE)
    assert rows == ["diffusers", "diffusers", "Tessera"]
