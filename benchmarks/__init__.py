"""Measurements of what Debut promises to be quick at: `python -m benchmarks`. Ratios are taken within one run."""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy and FAISS are loaded: one thread, as the service runs them
