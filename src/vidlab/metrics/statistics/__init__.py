"""What can be concluded from few runs: intervals, tests and what they could not have seen; pure functions on numbers."""
