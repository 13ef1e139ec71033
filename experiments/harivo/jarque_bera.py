"""Table A1 of HARIVO: how often noise that frames share passes the Jarque-Bera test. See README.md beside this file.

python experiments/harivo/jarque_bera.py [--trials 10000] [--elements 1024] [--frames 24] [--alpha 1]
"""

import argparse

from vidlab.lab.claims.jarque_bera import CHI_SQUARED_95, accepted, jarque_bera, limit, mixed_noise

__all__ = ["CHI_SQUARED_95", "accepted", "jarque_bera", "limit", "mixed_noise"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--elements", type=int, default=1024, help="of a frame")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--alpha", type=float, default=1.0)
    given = parser.parse_args()
    for name, alpha in (("correlated", given.alpha), ("independent", 0.0)):
        share = accepted(given.trials, given.frames, given.elements, alpha)
        error = (share * (1 - share) / given.trials) ** 0.5
        print(f"{name:12} accepted {share:.2%} +- {error:.2%}   limit {limit(given.frames, alpha):.2%}")


if __name__ == "__main__":
    main()
