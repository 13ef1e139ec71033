"""Runs the stages of a curation over partitions of source videos; what is finished stays, whatever ends the run."""
