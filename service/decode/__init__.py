"""Decoding in a box: processes with limits of their own, so that a bad file costs its one request and nothing else."""
