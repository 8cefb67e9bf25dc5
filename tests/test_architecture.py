"""The shape of the package: who imports whom, what it needs, how long its files are, and that its functions explain."""

import ast
import inspect
import pathlib
import subprocess
import sys

import pytest

import jaxprune
from jaxprune import checkpoints, files, masks, quantization, reports, saliency, schedules, structure, training
from jaxprune.masks import allocation
from jaxprune.quantization import codebook, rate_distortion, trellis

PACKAGE = pathlib.Path(inspect.getfile(jaxprune)).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = sorted({file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES})

# A module imports from earlier layers only, never from its own. A new module takes its place here.
LAYERS = (
    ("base",),
    ("host", "paths"),
    ("tree",),
    ("settings", "layout"),
    ("kernels",),
    ("saliency", "masks", "quantization", "schedules"),
    ("pruning", "program"),
    ("structure",),
    ("training", "files", "sweeps"),
    ("checkpoints",),
    ("reports",),
    ("cli",),
    ("__init__",),
)
LAYER = {module: number for number, layer in enumerate(LAYERS) for module in layer}


def imported(file):
    """The modules of the package that a file imports, anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name} has a relative import"
            if node.module == "jaxprune":
                names += [alias.name for alias in node.names]
            elif node.module and node.module.startswith("jaxprune."):
                names.append(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names += [a.name.split(".")[1] for a in node.names if a.name.startswith("jaxprune.")]
    return {name for name in names if name in MODULES}


IMPORTS = {
    module: set().union(*(imported(f) for f in FILES if f.relative_to(PACKAGE).parts[0].removesuffix(".py") == module))
    for module in MODULES
}


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("_") or name == "__init__"])
def test_dependencies_point_down(module):
    assert module in LAYER, f"{module} has no place in LAYERS"
    up = {other for other in IMPORTS[module] - {module} if LAYER.get(other, -1) >= LAYER[module]}
    assert not up, f"{module} imports {sorted(up)}, which is not below it"


def test_private_modules_belong_to_one_module():
    private = [name for name in MODULES if name.startswith("_") and name != "__init__"]
    users = {name: [module for module in MODULES if name in IMPORTS[module]] for name in private}
    assert all(len(modules) == 1 for modules in users.values()), users
    below = {name: IMPORTS[name] - {"base", "tree"} for name in private}
    assert not any(below.values()), below


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_file_is_long(file):
    assert len(file.read_text().splitlines()) <= 300


def test_all_but_training_needs_jax_and_numpy_alone():
    program = (
        "import importlib, pkgutil, sys, jaxprune\n"
        "def load(path, prefix):\n"
        "    for module in pkgutil.iter_modules(path, prefix):\n"
        "        if module.name != 'jaxprune.training':\n"
        "            loaded = importlib.import_module(module.name)\n"
        "            load(getattr(loaded, '__path__', []), module.name + '.')\n"
        "load(jaxprune.__path__, 'jaxprune.')\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "jaxprune" in loaded
    assert not loaded & {
        "flax",
        "optax",
        "chex",
        "orbax",
        "rich",
        "matplotlib",
        "sklearn",
        "torch",
        "qwix",
        "constriction",
        "safetensors",
        "mlxtend",
        "hypothesis",
    }


def public_functions():
    documented = (allocation, files, codebook, masks, quantization, rate_distortion, reports, saliency, schedules)
    for module in (jaxprune, checkpoints, *documented, structure, training, trellis):
        for name in getattr(module, "__all__", ()):
            if inspect.isfunction(value := getattr(module, name)):
                yield f"{module.__name__}.{name}", value


def test_public_functions_explain_themselves():
    functions = dict(public_functions())
    assert {"jaxprune.prune", "jaxprune.masks.by_sparsity", "jaxprune.saliency.magnitude"} <= set(functions)
    without = [name for name, function in functions.items() if ">>> " not in (inspect.getdoc(function) or "")]
    assert not without, f"no doctest in {without}"
    for name, function in functions.items():
        documented = inspect.getdoc(function)
        missing = [p for p in inspect.signature(function).parameters if p not in documented]
        assert not missing, f"{name} does not say what {missing} is"
