"""The arrows between the packages: what serves must not need what trains."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "onnx", "onnxscript", "scipy", "sklearn", "rich", "typer", "safetensors", "pandas")
SERVING = [name for name in ("index", "service") if (ROOT / name).is_dir()]
FORBIDDEN = {
    "index": {"service", "training", "demo", "fastapi", "starlette", "pydantic", *HEAVY},
    "service": {"training", "demo", *HEAVY},
    "training": {"service", "demo"},
}

IMPORT_ALL = """
import importlib, pkgutil, sys
package, *heavy = sys.argv[1:]

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in heavy:
            raise ModuleNotFoundError(f"{name} is not for {package}")

sys.meta_path.insert(0, Refuse())
root = importlib.import_module(package)
names = [m.name for m in pkgutil.walk_packages(root.__path__, package + ".") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


@pytest.mark.parametrize("package", SERVING)
def test_every_module_imports_without_the_trainers_packages(package, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_ALL, package, *HEAVY], cwd=ROOT, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    modules = [path for path in (ROOT / package).rglob("*.py") if path.name not in ("__init__.py", "__main__.py")]
    assert int(done.stdout) >= len(modules)


@pytest.mark.parametrize("package", [name for name in FORBIDDEN if (ROOT / name).is_dir()])
def test_no_module_names_what_its_package_may_not_know(package):
    """Imports within functions count too."""
    for path in sorted((ROOT / package).rglob("*.py")):
        found = {name.partition(".")[0] for name in _imported(ast.parse(path.read_text(encoding="utf-8")))}
        assert not found & FORBIDDEN[package], f"{path.relative_to(ROOT)} imports {sorted(found & FORBIDDEN[package])}"


def test_openvino_is_imported_in_one_place():
    """`index.models.onnxmodel` keeps it from reporting to its maker; an import elsewhere might come first."""
    importers = [
        path.relative_to(ROOT).as_posix()
        for package in FORBIDDEN
        for path in sorted((ROOT / package).rglob("*.py"))
        if any(name.partition(".")[0] == "openvino" for name in _imported(ast.parse(path.read_text(encoding="utf-8"))))
    ]
    assert importers == ["index/models/onnxmodel.py"]


def _imported(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return names
