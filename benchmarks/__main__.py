"""python -m benchmarks [MODULE ...]: runs the benchmark modules and prints one table of what they measured."""

import importlib
import os
import platform
import sys
import time

MODULES = ("search", "audience", "ingest", "overload", "larp")
"""Modules of this package; each has run() -> list of (what, figure)."""


def main(wanted: list[str]) -> int:
    """Run `wanted` modules, all of them when there are none; return the exit status."""
    unknown = sorted(set(wanted) - set(MODULES))
    if unknown:
        print(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(MODULES)}", file=sys.stderr)
        return 2
    print(f"{platform.machine()}, {os.cpu_count()} cores, {os.environ['OMP_NUM_THREADS']} thread(s) for BLAS and FAISS")
    for module in wanted or MODULES:
        began = time.perf_counter()
        rows = importlib.import_module(f"benchmarks.{module}").run()
        print(f"\n{module} ({time.perf_counter() - began:.0f} s)")
        width = max(len(what) for what, _ in rows)
        for what, figure in rows:
            print(f"  {what:<{width}}  {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
