from types import SimpleNamespace

from scaling.wandb_runs import cell_of_wandb

CONFIG = {"model.num_blocks": 2, "model.num_heads": 4, "model.head_dim": 16, "model.ffn_dim": 128, "model.text_dim": 8}
END = {"step": 10, "tokens": 5000, "flops": 10**9, "heldout/loss": 0.7, "heldout/ratio_to_zero": 0.4}


def wandb_run(*, state="finished", config=CONFIG | {"run.steps": 10}, rows=(END,)):
    """The attributes of `wandb.apis.public.Run` that are read."""
    return SimpleNamespace(name="a", id="1x", state=state, config=config, scan_history=lambda keys: iter(rows))


def test_a_finished_run_is_a_cell():
    cell = cell_of_wandb(wandb_run())
    assert (cell.name, cell.broken, cell.loss, cell.tokens) == ("a (1x)", "", 0.7, 5000)


def test_a_run_whose_gap_to_training_clips_grows_is_left_out():
    """W&B gives only rows that have every key that is asked for."""
    rows = [{"step": step, "heldout/loss": 0.7, "heldout/gap": gap} for step, gap in ((0, 0.3), (5, 0.007), (10, 0.07))]
    found = wandb_run(rows=(*rows, END))
    every = found.scan_history
    found.scan_history = lambda keys: (row for row in every(keys) if set(keys) <= row.keys())
    assert "grows by 9.0% of the loss, from 1.0% to 10.0%" in cell_of_wandb(found).broken


def test_runs_that_broke_keep_their_name_and_say_why():
    assert cell_of_wandb(wandb_run(state="crashed")).broken == "W&B calls it crashed"
    assert "stopped at step 0 of 10" in cell_of_wandb(wandb_run(rows=())).broken
    assert "another program" in cell_of_wandb(wandb_run(config={"lr": 1})).broken
