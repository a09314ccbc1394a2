"""Who may import whom: the arrows of docs/architecture.md, held by a walk over every import statement."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_MODEL_ROOMS = frozenset({"core", "rope", "ops", "nn", "models", "weights"})
_RUN_ROOMS = _MODEL_ROOMS | {"losses", "data", "dist", "pretrained"}

#: Room -> the rooms that it may import besides itself. A folder of stvl/ that is not listed here is refused.
ALLOWED: dict[str, frozenset[str]] = {
    "core": frozenset(),
    "rope": frozenset({"core"}),
    "ops": frozenset({"core"}),
    "nn": frozenset({"core", "rope", "ops"}),
    "weights": frozenset({"core"}),
    "models": frozenset({"core", "rope", "ops", "nn", "weights"}),
    "losses": frozenset({"core", "ops"}),
    "data": frozenset({"core"}),
    "dist": frozenset({"core"}),
    "pretrained": _MODEL_ROOMS | {"data"},
    "eval": _RUN_ROOMS,
    "train": _RUN_ROOMS | {"eval"},
    "plan": _RUN_ROOMS | {"eval", "train"},
    "claims": _RUN_ROOMS | {"eval", "train"},
    "cli": _RUN_ROOMS | {"eval", "train", "plan", "claims"},
    "__init__": frozenset({"core"}),
    "__main__": frozenset({"cli"}),
}

#: Package -> the files of stvl/ that may not import it.
NO_JAX = re.compile(r"stvl/(data|eval/metrics)/")
JAX = frozenset({"jax", "jaxlib", "flax", "optax", "orbax", "chex"})
TORCH_HOME = re.compile(r"stvl/weights/readers[^/]*(/|$)|tests/parity/")
DYNAMIC_HOME = re.compile(r"stvl/__init__\.py$|stvl/cli/main\.py$|stvl/train/experiment\.py$")

#: Import name -> distribution, where the two differ by more than the dash.
DISTRIBUTIONS = {"absl": "absl-py", "PIL": "pillow", "orbax": "orbax-checkpoint"}


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module: where it stands, and whether it runs when the file is imported."""

    file: str
    line: int
    target: str
    top: bool


def python_files(root: Path, *folders: str) -> list[Path]:
    """All Python files below the folders, in a fixed order."""
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def module_name(root: Path, path: Path) -> str:
    """``stvl/core/errors.py`` -> ``stvl.core.errors``; a package's ``__init__`` takes the package's name."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(tree: ast.AST, top: bool = True) -> Iterator[tuple[ast.stmt, bool]]:
    """Every import statement, and whether it runs at import time (not in a function, not for type checkers only)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, top
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node, False)
        else:
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from statements(node, top and not inside)


def targets(node: ast.stmt, name: str, is_package: bool, known: frozenset[str]) -> list[str]:
    """The modules that one import statement names, relative ones spelt out, ``from a import b`` as a.b if a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert isinstance(node, ast.ImportFrom)
    base = node.module or ""
    if node.level:
        parts = name.split(".")
        parts = parts[: len(parts) - node.level + is_package]
        base = ".".join([*parts, *([node.module] if node.module else [])])
    full = [f"{base}.{alias.name}" for alias in node.names]
    return list(dict.fromkeys(name if name in known or base == "stvl" else base for name in full))


def imports(root: Path, *folders: str) -> list[Import]:
    """Every import of every file below the folders."""
    files = python_files(root, *folders)
    known = frozenset(module_name(root, path) for path in files)
    found = []
    for path in files:
        name, is_package = module_name(root, path), path.name == "__init__.py"
        for node, top in statements(ast.parse(path.read_text(encoding="utf-8"))):
            for target in targets(node, name, is_package, known):
                found.append(Import(path.relative_to(root).as_posix(), node.lineno, target, top))
    return found


def room_of(file: str) -> str:
    """``stvl/core/errors.py`` -> ``core``; files directly in stvl/ are rooms of their own."""
    return file.split("/")[1].removesuffix(".py")


def wrong_arrows(found: list[Import]) -> list[str]:
    """Imports between rooms that ALLOWED does not hold, and rooms that it does not know."""
    problems = []
    for item in found:
        room, parts = room_of(item.file), item.target.split(".")
        if room not in ALLOWED:
            problems.append(f"{item.file}: the room {room!r} is not in ALLOWED")
        elif parts[0] == "stvl" and item.target != "stvl.__version__":
            target = parts[1] if len(parts) > 1 else "stvl itself"
            if target not in ALLOWED[room] | {room}:
                problems.append(f"{item.file}:{item.line}: {room} may not import {item.target}")
    return list(dict.fromkeys(problems))


def wrong_packages(found: list[Import]) -> list[str]:
    """jax where data stays light, torch away from its home or at top level, TensorFlow anywhere."""
    problems = []
    for item in found:
        package, where = item.target.split(".")[0], f"{item.file}:{item.line}"
        if package in JAX and NO_JAX.match(item.file):
            problems.append(f"{where}: {package} is kept out of data and eval/metrics")
        if package in ("torch", "torchvision") and (item.top or not TORCH_HOME.match(item.file)):
            problems.append(f"{where}: torch only inside functions of stvl/weights/readers* and tests/parity")
        if package in ("tensorflow", "tensorflow_datasets") and item.top:
            problems.append(f"{where}: {package} only inside functions")
        if package == "tensorflow":
            problems.append(f"{where}: no TensorFlow")
    return problems


def edges(found: list[Import], root: Path) -> dict[str, set[str]]:
    """Module -> modules that run when it is imported, among them the packages on the way to a target.

    The packages that a module lies in itself are left out: they are under way already when it runs.
    """
    names = {
        path.relative_to(root).as_posix(): module_name(root, path) for path in python_files(root, "stvl")
    }
    graph: dict[str, set[str]] = {name: set() for name in names.values()}
    for item in found:
        name, parts = names[item.file], item.target.split(".")
        way = {".".join(parts[:depth]) for depth in range(1, len(parts) + 1)} if item.top else set()
        graph[name] |= {step for step in way & graph.keys() if not f"{name}.".startswith(f"{step}.")}
    return graph


def cycle(found: list[Import], root: Path) -> list[str] | None:
    """The modules of one cycle of import-time imports, or None."""
    try:
        graphlib.TopologicalSorter(edges(found, root)).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def jax_through_stvl(found: list[Import], root: Path) -> list[str]:
    """Chains of import-time imports that bring jax into data or eval/metrics by way of another module of stvl."""
    graph = edges(found, root)
    heavy = {
        module_name(root, root / item.file) for item in found if item.top and item.target.split(".")[0] in JAX
    }
    problems = []
    for path in python_files(root, "stvl"):
        file, start = path.relative_to(root).as_posix(), module_name(root, path)
        seen, todo = {start}, [start] if NO_JAX.match(file) else []
        while todo:
            new = graph[todo.pop()] - seen
            seen |= new
            todo.extend(new)
        problems += [f"{file} reaches {name}, which imports jax" for name in sorted(seen & heavy - {start})]
    return problems


def undeclared(found: list[Import], declared: set[str]) -> list[str]:
    """Third-party packages that stvl imports and pyproject.toml does not name."""
    problems = []
    for item in found:
        package = item.target.split(".")[0]
        if package in sys.stdlib_module_names or package == "stvl":
            continue
        distribution = DISTRIBUTIONS.get(package, package).lower().replace("_", "-")
        if distribution not in declared:
            problems.append(
                f"{item.file}:{item.line}: {package} is not among the dependencies of pyproject.toml"
            )
    return problems


def dynamic_imports(root: Path) -> list[str]:
    """Calls that import by a computed name, which no walk over import statements can see, outside their homes."""
    problems = []
    for path in python_files(root, "stvl"):
        file = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            dynamic = call.rpartition(".")[2] in ("import_module", "__import__", "spec_from_file_location")
            if dynamic and not DYNAMIC_HOME.match(file):
                problems.append(f"{file}:{node.lineno}: {call} hides an import")
    return problems


def declared_distributions() -> set[str]:
    """Core dependencies and the extras that stvl itself imports, inside functions; normalised names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["torch"] + extras["notebooks"] + extras["hub"] + extras["gcs"]
    names = (re.match(r"[A-Za-z0-9_.-]+", line) for line in wanted)
    return {name.group().lower().replace("_", "-") for name in names if name}


def test_rooms_import_only_what_the_design_allows():
    assert wrong_arrows(imports(ROOT, "stvl")) == []


def test_every_room_is_listed():
    rooms = {path.name for path in (ROOT / "stvl").iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert rooms - set(ALLOWED) == set()


def test_heavy_packages_stay_in_their_places():
    folders = [name for name in ("stvl", "tests", "configs") if (ROOT / name).is_dir()]
    assert wrong_packages(imports(ROOT, *folders)) == []


def test_no_cycles():
    assert cycle(imports(ROOT, "stvl"), ROOT) is None


def test_data_and_metrics_do_not_reach_jax_through_stvl():
    assert jax_through_stvl(imports(ROOT, "stvl"), ROOT) == []


def test_every_import_is_a_declared_dependency():
    assert undeclared(imports(ROOT, "stvl"), declared_distributions()) == []


def test_no_hidden_imports():
    assert dynamic_imports(ROOT) == []


def test_data_room_imports_where_jax_is_absent():
    modules = [module_name(ROOT, path) for path in python_files(ROOT, "stvl/data", "stvl/eval/metrics")]
    block = "; ".join(f"sys.modules[{name!r}] = None" for name in sorted(JAX - {"chex"}))
    code = f"import sys; {block}; import importlib; [importlib.import_module(m) for m in {modules!r}]"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# The checker itself: each planted fault is found.


def plant(root: Path, files: dict[str, str]) -> list[Import]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return imports(root, "stvl")


def test_checker_finds_a_wrong_arrow(tmp_path):
    found = plant(
        tmp_path,
        {
            "stvl/losses/info.py": "def f():\n    from stvl.models import dual\n",
            "stvl/eval/run.py": "from ..train.loop import fit\nimport stvl.core.errors\n",
            "stvl/models/dual.py": "from stvl.core import errors\nfrom stvl import Experiment, __version__\n",
        },
    )
    assert wrong_arrows(found) == [
        "stvl/eval/run.py:1: eval may not import stvl.train.loop",
        "stvl/losses/info.py:2: losses may not import stvl.models.dual",
        "stvl/models/dual.py:2: models may not import stvl.Experiment",
    ]


def test_checker_refuses_an_unlisted_room(tmp_path):
    found = plant(tmp_path, {"stvl/utils/misc.py": "import os\n"})
    assert wrong_arrows(found) == ["stvl/utils/misc.py: the room 'utils' is not in ALLOWED"]


def test_checker_finds_jax_torch_and_tensorflow(tmp_path):
    found = plant(
        tmp_path,
        {
            "stvl/data/a.py": "def f():\n    import jax.numpy as jnp\n",
            "stvl/eval/metrics/b.py": "from flax import linen\n",
            "stvl/eval/c.py": "import jax\n",
            "stvl/nn/d.py": "def f():\n    import torch\n",
            "stvl/weights/readers.py": "import torch\ndef f():\n    import torch\n",
            "stvl/train/e.py": "def f():\n    import tensorflow as tf\n",
        },
    )
    assert [problem.split(": ")[0] for problem in wrong_packages(found)] == [
        "stvl/data/a.py:2",
        "stvl/eval/metrics/b.py:1",
        "stvl/nn/d.py:2",
        "stvl/train/e.py:2",
        "stvl/weights/readers.py:1",
    ]


def test_checker_finds_a_cycle_but_not_a_late_import(tmp_path):
    late = {
        "stvl/core/a.py": "from stvl.core import b\n",
        "stvl/core/b.py": "def f():\n    import stvl.core.a\n",
    }
    assert cycle(plant(tmp_path, late), tmp_path) is None
    found = plant(tmp_path, {"stvl/core/b.py": "from . import a\n"})
    assert set(cycle(found, tmp_path) or []) == {"stvl.core.a", "stvl.core.b"}


def test_checker_finds_a_cycle_through_a_package(tmp_path):
    found = plant(
        tmp_path,
        {
            "stvl/models/dual.py": "from stvl.models.eva.module import Tower\n",
            "stvl/models/eva/__init__.py": "from stvl.models.eva.presets import PRESETS\n",
            "stvl/models/eva/module.py": "import os\n",
            "stvl/models/eva/presets.py": "from stvl.models.dual import Dual\n",
        },
    )
    assert set(cycle(found, tmp_path) or []) == {
        "stvl.models.dual",
        "stvl.models.eva",
        "stvl.models.eva.presets",
    }


def test_checker_finds_jax_behind_another_module(tmp_path):
    found = plant(
        tmp_path,
        {
            "stvl/data/a.py": "import stvl.core.b\n",
            "stvl/core/b.py": "import stvl.core.c\n",
            "stvl/core/c.py": "import jax\n",
        },
    )
    assert jax_through_stvl(found, tmp_path) == ["stvl/data/a.py reaches stvl.core.c, which imports jax"]


def test_checker_finds_undeclared_and_hidden_imports(tmp_path):
    text = "import os, numpy, pandas\nfrom PIL import Image\nimport importlib\nimportlib.import_module('x')\n"
    found = plant(tmp_path, {"stvl/core/a.py": text})
    assert [item.split(": ")[1].split()[0] for item in undeclared(found, {"numpy", "pillow"})] == ["pandas"]
    assert dynamic_imports(tmp_path) == ["stvl/core/a.py:4: importlib.import_module hides an import"]
