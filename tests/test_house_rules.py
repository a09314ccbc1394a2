"""House rules that a machine can hold: sizes, docstrings, and the things that are never written."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import stvl

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE, MAX_FUNCTION, MAX_KERNEL, MAX_PARAMETERS = 400, 60, 150, 8

#: Files of an op that hold kernels, whose bodies may be longer.
KERNEL_FILE = re.compile(r"stvl/ops/[^/]+/([^/]*_)?(tpu|gpu|kernel|pallas)[^/]*\.py$")
BANNED_MODULES = frozenset({"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "yaml"})

Function = ast.FunctionDef | ast.AsyncFunctionDef
Rule = Callable[[str, str], list[str]]


def functions(tree: ast.AST) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def file_length(file: str, text: str) -> list[str]:
    """A file has fewer than 400 lines."""
    lines = len(text.splitlines())
    return [f"{file}: {lines} lines, fewer than {MAX_FILE} are allowed"] if lines >= MAX_FILE else []


def function_length(file: str, text: str) -> list[str]:
    """A function has fewer than 60 lines, docstring included; a kernel fewer than 150."""
    limit = MAX_KERNEL if KERNEL_FILE.match(file) else MAX_FUNCTION
    problems = []
    for node in functions(ast.parse(text)):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines >= limit:
            problems.append(
                f"{file}:{node.lineno}: {node.name} has {lines} lines, fewer than {limit} are allowed"
            )
    return problems


def parameters(file: str, text: str) -> list[str]:
    """A function takes at most 8 parameters, then an options object."""
    problems = []
    for node in functions(ast.parse(text)):
        spec = node.args
        names = [
            arg.arg
            for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg)
            if arg
        ]
        names = names[1:] if names and names[0] in ("self", "cls") else names
        if len(names) > MAX_PARAMETERS and not KERNEL_FILE.match(file):
            problems.append(
                f"{file}:{node.lineno}: {node.name} takes {len(names)} parameters, {MAX_PARAMETERS} are allowed"
            )
    return problems


def docstrings(file: str, text: str) -> list[str]:
    """Every public module, class and function says what it is."""
    tree = ast.parse(text)
    parts = [part for part in file.removesuffix(".py").split("/") if part not in ("__init__", "__main__")]
    if any(part.startswith("_") for part in parts):
        return []
    problems = [] if ast.get_docstring(tree) else [f"{file}: no docstring"]
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            overload = any("overload" in ast.unparse(item) for item in node.decorator_list)
            if not node.name.startswith("_") and not overload and not ast.get_docstring(node):
                problems.append(f"{file}:{node.lineno}: {node.name} has no docstring")
    return problems


def swallowed(file: str, text: str) -> list[str]:
    """No handler of everything that does nothing."""
    problems = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            empty = all(isinstance(item, (ast.Pass, ast.Continue)) for item in node.body)
            if (broad and empty) or node.type is None:
                problems.append(f"{file}:{node.lineno}: this handler swallows every error")
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            if any(ast.unparse(arg) in ("Exception", "BaseException") for arg in node.args):
                problems.append(f"{file}:{node.lineno}: this handler swallows every error")
    return problems


def dangerous(file: str, text: str) -> list[str]:
    """No text is run as code, by Python or by a shell; no format that runs code when it is read."""
    problems = []
    for node in ast.walk(ast.parse(text)):
        found = ""
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            if call in ("eval", "exec", "os.system", "os.popen", "builtins.eval", "builtins.exec"):
                found = call
            for word in node.keywords:
                unsafe = {"shell": "True", "allow_pickle": "True"}.get(word.arg or "")
                if unsafe and ast.unparse(word.value) == unsafe:
                    found = f"{word.arg}=True"
        elif isinstance(node, ast.Import):
            found = ", ".join(
                alias.name for alias in node.names if alias.name.split(".")[0] in BANNED_MODULES
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in BANNED_MODULES:
            found = node.module or ""
        if found:
            problems.append(f"{file}:{node.lineno}: {found} is not used here")
    return problems


def protocols(file: str, text: str) -> list[str]:
    """A protocol is runtime_checkable, so that the tests' type checker can look at annotations that name it."""
    problems = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ClassDef):
            continue
        bases = [ast.unparse(base).split("[")[0].rpartition(".")[2] for base in node.bases]
        checkable = any(ast.unparse(item).endswith("runtime_checkable") for item in node.decorator_list)
        if "Protocol" in bases and not checkable:
            problems.append(f"{file}:{node.lineno}: {node.name} is a Protocol without @runtime_checkable")
    return problems


#: Rule -> the folders that it holds in.
RULES: dict[Rule, tuple[str, ...]] = {
    file_length: ("stvl", "tests", "configs"),
    function_length: ("stvl", "tests", "configs"),
    parameters: ("stvl", "tests", "configs"),
    docstrings: ("stvl", "configs"),
    swallowed: ("stvl", "tests", "configs"),
    dangerous: ("stvl", "configs"),
    protocols: ("stvl",),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Rule):
    problems = []
    for folder in RULES[rule]:
        for path in sorted((ROOT / folder).rglob("*.py")):
            problems += rule(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    assert not problems, f"{rule.__doc__}\n" + "\n".join(problems)


LONG = "def f():\n" + "    x = 1\n" * 59
FAULTS: list[tuple[Rule, str, str, int]] = [
    (file_length, "stvl/a.py", "x = 1\n" * 400, 1),
    (file_length, "stvl/a.py", "x = 1\n" * 399, 0),
    (function_length, "stvl/a.py", LONG, 1),
    (function_length, "stvl/a.py", LONG[:-10], 0),
    (function_length, "stvl/ops/attention/tpu_kernel.py", LONG, 0),
    (function_length, "stvl/ops/attention/tpu_kernel.py", LONG + "    x = 1\n" * 90, 1),
    (parameters, "stvl/a.py", "def f(a, b, c, d, /, e, *, f, g, h): ...", 0),
    (parameters, "stvl/a.py", "def f(a, b, c, d, /, e, *, f, g, h, **i): ...", 1),
    (parameters, "stvl/a.py", "class A:\n    def f(self, a, b, c, d, e, f, g, h): ...", 0),
    (docstrings, "stvl/a.py", "def f(): ...\nclass A: ...", 3),
    (docstrings, "stvl/a.py", '"""A."""\ndef _f(): ...\ndef g():\n    """G."""', 0),
    (docstrings, "stvl/_a.py", "def f(): ...", 0),
    (docstrings, "stvl/core/__init__.py", "", 1),
    (swallowed, "stvl/a.py", "try:\n    f()\nexcept Exception:\n    pass", 1),
    (swallowed, "stvl/a.py", "try:\n    f()\nexcept:\n    log()", 1),
    (swallowed, "stvl/a.py", "with contextlib.suppress(Exception):\n    f()", 1),
    (swallowed, "stvl/a.py", "try:\n    f()\nexcept KeyError:\n    pass", 0),
    (dangerous, "stvl/a.py", "eval('1')", 1),
    (dangerous, "stvl/a.py", "exec(text)", 1),
    (dangerous, "stvl/a.py", "model.eval()", 0),
    (dangerous, "stvl/a.py", "import pickle\nfrom cloudpickle import dumps", 2),
    (dangerous, "stvl/a.py", "subprocess.run(line, shell=True)", 1),
    (dangerous, "stvl/a.py", "np.load(path, allow_pickle=True)", 1),
    (dangerous, "stvl/a.py", "np.load(path, allow_pickle=False)", 0),
    (protocols, "stvl/a.py", "class A(typing.Protocol): ...", 1),
    (protocols, "stvl/a.py", "@runtime_checkable\nclass A(Protocol[T]): ...", 0),
]


@pytest.mark.parametrize(("rule", "file", "text", "count"), FAULTS)
def test_rule_finds_planted_faults(rule: Rule, file: str, text: str, count: int):
    assert len(rule(file, text)) == count


@pytest.mark.parametrize("name", stvl.__all__)
def test_public_name_resolves(name: str):
    assert getattr(stvl, name) is not None
    assert name in dir(stvl)


def test_unknown_public_name_shows_the_nearest():
    with pytest.raises(AttributeError, match=r"stvl has no 'Experimen' \(did you mean 'Experiment'\?\)"):
        _ = stvl.Experimen


def test_constraints_are_plain_pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    wrong = [
        line
        for line in pins
        if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!]+( *; *python_version .+)?", line)
    ]
    assert len(pins) > 50
    assert wrong == []
