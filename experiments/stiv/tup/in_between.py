"""Frames that a temporal upsampler makes against linear interpolation and repetition. See README.md beside this file.

python experiments/stiv/tup/in_between.py RUN [--clips 64] [--steps 10]
"""

import argparse

from vidlab.lab.evaluation.in_between import measure

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run of experiment=stiv/tup_laptop: last, a folder or a checkpoint")
    parser.add_argument("--clips", type=int, default=64, help="held-out clips")
    parser.add_argument("--steps", type=int, default=10, help="of the sampler")
    given = parser.parse_args()
    print(measure(given.run, given.clips, given.steps))
