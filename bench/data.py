"""The data plane beside others: how evenly ranks are loaded, and how fast samples are read.

    make bench          or: python -m bench.data [--planning | --reading]
"""

import argparse

from bench.planning import print_scores, print_times
from bench.sampling import Setting


def main() -> None:
    parser = argparse.ArgumentParser(description="Our data plane beside others.")
    parser.add_argument("--planning", action="store_true", help="only the part that reads nothing")
    parser.add_argument("--steps", type=int, default=20, help="planned steps")
    arguments = parser.parse_args()
    setting = Setting(steps=arguments.steps)
    print_scores(setting)
    print_times(setting)


if __name__ == "__main__":
    main()
