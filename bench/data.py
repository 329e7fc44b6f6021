"""The data plane beside others: how evenly ranks are loaded, and how fast samples are read.

    make bench          or: python -m bench.data [--planning | --reading] [--steps 20] [--rounds 5]

Planning reads nothing: sizes are drawn, FLOPs come from the model's own count, ranks are simulated. Reading takes the
same latents through our loader, webdataset, mosaicml-streaming, megatron-energon (in the environment that
bench/peers.sh makes) and plain `read()`, in turns. Each hands out float32 tensors of the latent and the text, sample
by sample, in shuffled order; that these are the same is checked first. The ratio to `read()` is also told without
that conversion, which is the model's and not the reader's.
"""

import argparse
import sys

from bench.planning import ROWS, print_scores, print_times
from bench.reading import CONTENDERS, Effort, print_reading
from bench.sampling import Setting
from data.command import command


@command("stopped; what was printed stands")
def main() -> int:
    """Parse arguments and measure."""
    parser = argparse.ArgumentParser(description="Our data plane beside others.")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--planning", action="store_true", help="only the part that reads nothing")
    part.add_argument("--reading", action="store_true", help="only the part that reads")
    parser.add_argument("--steps", type=int, default=20, help="planned steps")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="samples of the planned sets")
    parser.add_argument("--rounds", type=int, default=5, help="measured turns of each loader, after one that warms up")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="loaders whose name has one of these, beside ours")
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.rounds < 2 or min(arguments.rows) < 1:
        parser.error("at least 1 step of at least 1 row is planned, and at least 2 rounds are measured")
    for word in arguments.only or []:
        if not any(word in name for name in CONTENDERS):
            parser.error(f"--only {word} is in the name of no loader: they are {'; '.join(CONTENDERS)}")
    words = ["read()", "Tessera", *(arguments.only or [""])]
    names = [name for name in CONTENDERS if any(word in name for word in words)]
    if not arguments.reading:
        print_scores(Setting(steps=arguments.steps))
        print_times(Setting(steps=arguments.steps), tuple(arguments.rows))
    if not arguments.planning:
        print_reading(names, Effort(rounds=arguments.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
