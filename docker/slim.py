"""python docker/slim.py FOLDER: remove from installed packages what the service never loads; fail if more is missing.

The service runs models on the CPU, from ONNX files, and reads Parquet files from disk. What the wheels carry besides is
for other devices, other model formats, other people's clouds, compilers, debuggers and test suites.
"""

import subprocess
import sys
from pathlib import Path

UNUSED = (
    "openvino/libs/*gpu_plugin*",
    "openvino/libs/cache.json",  # the GPU plugin's
    "openvino/libs/*npu*",
    *(f"openvino/libs/*_{name}_frontend*" for name in ("tensorflow*", "pytorch", "paddle", "gguf", "jax")),
    *(f"openvino/frontend/{name}" for name in ("tensorflow", "pytorch", "paddle", "jax")),
    "openvino/include",
    "openvino/cmake",
    "pyarrow/include",
    "pyarrow/includes",
    "pyarrow/tests",
    "pyarrow/src",
    "pyarrow/*flight*",
    "pyarrow/*s3*",
    "pyarrow/*_gcsfs*",
    "pyarrow/*_azurefs*",
    "pyarrow/_pyarrow_cpp_tests*",
    "pyarrow/*.pyx",
    "pyarrow/*.pxi",
    "pyarrow/libarrow_python*.so",  # the same file under three names; programs ask for .so.<version>
    "pyarrow/libarrow_python*.so.*.*.*",
    "numpy/*/tests",
    "numpy/tests",
    "numpy/_core/include",
    "numpy/_core/lib",
    "numpy/f2py",
    "numpy/distutils",
    # tokenizers asks for these to fetch tokenizers from a hub; ours is a file of the release.
    *(f"{name}*" for name in ("huggingface_hub", "hf_xet", "fsspec", "filelock", "tqdm", "yaml", "_yaml", "pyyaml")),
    *(f"{name}*" for name in ("httpx2", "httpcore2", "truststore")),
    "**/*.pyi",
)
SYMBOLS = ("av", "httptools", "pyarrow", "tokenizers", "uvloop")
"""Packages whose libraries carry symbols for debuggers, a third of them or more."""


def main() -> int:
    """Remove, report, check; return 1 when a library lacks another that it lacked not before."""
    (packages,) = Path(sys.argv[1]).glob("lib/python3.*/site-packages")
    before, lacking = _size(packages), _lacking(packages)
    for pattern in UNUSED:
        found = [str(path) for path in packages.glob(pattern)]
        if not found:  # not every processor's wheel has everything
            sys.stdout.write(f"slim: nothing is called {pattern}\n")
        subprocess.run(["rm", "-rf", *found], check=True)
    libraries = [str(path) for name in SYMBOLS for path in (packages / name).rglob("*.so*")]
    subprocess.run(["strip", "--strip-unneeded", *libraries], check=True)
    sys.stdout.write(f"slim: {before >> 20} MiB -> {_size(packages) >> 20} MiB\n")
    if torn := _lacking(packages) - lacking:
        sys.stderr.write("slim: removed what is needed:\n" + "\n".join(sorted(torn)) + "\n")
    return bool(torn)


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _lacking(packages: Path) -> set[str]:
    """Each library that some library below `packages` asks for in vain, as "who: whom"."""
    lacking = set()
    for path in packages.rglob("*.so*"):
        told = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False).stdout
        lacking |= {f"{path.name}: {line.split()[0]}" for line in told.splitlines() if "not found" in line}
    return lacking


if __name__ == "__main__":
    sys.exit(main())
