"""Breaks the program in one place at a time and prints what notices: `python mutants.py [FOLDER] [PATTERN]`."""

import json
import math
import os
import re
import statistics
import sys
import tempfile
import warnings
from pathlib import Path

import collective_mutants
import mutant_runs
import other_mutants
import tensor_mutants
from mutant_runs import Job

MUTANTS = [*tensor_mutants.MUTANTS, *collective_mutants.MUTANTS, *other_mutants.MUTANTS]
BF16_SLACK = 1.5
"""How much further from float64 than on one process a bf16 gradient may be."""
MISTAKES = ("NameError", "UnboundLocalError", "ImportError", "ModuleNotFoundError", "AttributeError", "TypeError")
"""Errors by which a mutant catches itself: its text is wrong."""
ORDER = ("loss", "gradient", "norm", "weights", "ema", "predictions")


def jobs_of(mutants):
    """Each mutant's check, and before them the same checks of the program as it is."""
    wanted = {(m.layout, m.check) for m in mutants}
    sound = sorted(pair for pair in wanted if pair[1] != "steps" or (pair[0], "parity") not in wanted)
    in_bf16 = [m for m in mutants if m.file == "parallel/stage.py" and m.layout == "pp2" and m.check == "parity"]
    return [
        *(Job(*pair) for pair in sound),
        *(Job(layout, "bf16") for layout in ("single_bf16", "pp2_bf16")),
        *(Job("pp2_bf16", "bf16", m) for m in in_bf16),
        *(Job(m.layout, m.check, m) for m in mutants),
    ]


def rows_of(results):
    """What is printed of each result: name, layout, and what caught it or None."""
    single = next(result for result in results if result["layout"] == "single_bf16")
    assert not single["error"], single["error"]
    limit = BF16_SLACK * bf16_distance(single)
    return [{"name": r["name"], "layout": r["layout"], "caught_by": caught_by(r, limit)} for r in results]


def caught_by(result, bf16_limit):
    """In words; None where nothing noticed."""
    if result["error"]:
        assert not result["error"].startswith(MISTAKES), f"{result['name']}: {result['error']}"
        return f"raised {result['error']}"
    if result["died_of"]:
        return "not done in time" if result["died_of"] == "SIGALRM" else f"died of {result['died_of']}"
    if result["check"] == "bf16":
        error = bf16_distance(result)
        return f"bf16 gradient vector {error:.1e}, limit {bf16_limit:.1e}" if error > bf16_limit else None
    worst = {}
    for what, value, where in (finding for rank in result["findings"] for finding in rank):
        worst[what] = max((value, where), worst.get(what, (0.0, "")))
    kinds = sorted(worst, key=lambda what: ORDER.index(what) if what in ORDER else -1)
    return "; ".join(in_words(kind, *worst[kind]) for kind in kinds[:3]) or None


def in_words(what, value, where):
    """`loss 3.1e-02 (step 0)`; tests of a kind that only fail have no value."""
    return " ".join(filter(None, [what, f"{value:.1e}" if math.isfinite(value) else "", f"({where})" if where else ""]))


def bf16_distance(result):
    """Of the gradient vector from float64's, the same on all ranks; median over seeds."""
    return statistics.median(result["findings"][0])


def table(rows):
    """The rows as text."""
    widths = [max(len(row[column]) for row in rows) for column in ("name", "layout")]
    lines = [
        f"{row['name']:{widths[0]}}  {row['layout']:{widths[1]}}  {(row['caught_by'] or '-')[:160]}" for row in rows
    ]
    return "\n".join([f"{'mutant':{widths[0]}}  {'layout':{widths[1]}}  caught by", *lines])


def is_as_it_should(row):
    return (row["caught_by"] is None) == (row["name"] == mutant_runs.NO_FAULT)


def prepare():
    """One process's environment for small ranks on the CPU, whatever it was started from."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        del os.environ[name]
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    sys.path.insert(0, str(mutant_runs.ROOT))
    warnings.simplefilter("ignore")


def main():
    prepare()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="mutants"))
    folder.mkdir(parents=True, exist_ok=True)
    pattern = sys.argv[2] if len(sys.argv) > 2 else ""
    results = mutant_runs.run(jobs_of([m for m in MUTANTS if re.search(pattern, m.name)]), folder)
    (folder / "results.json").write_text(json.dumps(results))
    rows = rows_of(results)
    (folder / "rows.json").write_text(json.dumps(rows))
    print(table(rows))
    wrong = [row for row in rows if not is_as_it_should(row)]
    print(f"{len(rows)} runs, {len(wrong)} of them not as they should be; logs in {folder}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
