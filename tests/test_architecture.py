"""The shape of the package: who imports whom, what it needs, how long its parts are, and that its functions explain."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import jaxprune

PACKAGE = pathlib.Path(inspect.getfile(jaxprune)).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {file: ast.parse(file.read_text()) for file in FILES}

# A room imports from earlier rows only, never from its own. A new one takes its place here.
LAYERS = (
    ("base",),
    ("host", "paths"),
    ("tree",),
    ("settings", "layout"),
    ("kernels",),
    ("saliency", "masks", "quantization", "schedules"),
    ("pruning", "program"),
    ("structure",),
    ("calibration",),
    ("training", "files"),
    ("integer", "recovery"),
    ("sweeps", "checkpoints"),
    ("reports",),
    ("cli",),
    ("__init__",),
)
LAYER = {room: number for number, row in enumerate(LAYERS) for room in row}
#: Imported when it is asked for, as it takes a while: the reason is in the file.
LAZY = {"__init__.py", "cli/__init__.py"}


def room_of(module):
    """The first part of a module's name below the package."""
    return module.split(".")[1] if "." in module else "__init__"


def name_of(file):
    parts = ("jaxprune", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(part for part in parts if part != "__init__")


NAMES = {name_of(file) for file in FILES}


def imports(nodes):
    """The modules of the package that these statements import."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxprune":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in NAMES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "jaxprune")


def for_types(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


ANYWHERE = {name_of(file): set(imports(ast.walk(tree))) for file, tree in TREES.items()}
AT_LOADING = {name_of(file): set(imports(tree.body)) for file, tree in TREES.items()}


@pytest.mark.parametrize("room", sorted({room_of(name) for name in NAMES}))
def test_dependencies_point_down(room):
    assert room in LAYER, f"{room} has no place in LAYERS"
    used = {room_of(other) for name in NAMES if room_of(name) == room for other in ANYWHERE[name]}
    if room == "cli":  # reads the version
        used -= {"__init__"}
    up = {other for other in used - {room} if LAYER[other] >= LAYER[room]}
    assert not up, f"{room} imports {sorted(up)}, which is not below it"


def test_no_imports_go_in_circles():
    """A package counts for what its ``__init__`` imports, and is loaded before its modules."""
    order, open_ = [], []

    def visit(name):
        assert name not in open_, f"a circle: {[*open_[open_.index(name) :], name]}"
        if name not in order:
            open_.append(name)
            for other in sorted(AT_LOADING[name] - {name, "jaxprune"}):
                if not name.startswith(other + "."):
                    visit(other)
            order.append(open_.pop())

    for name in sorted(NAMES - {"jaxprune"}):
        visit(name)
    assert len(order) == len(NAMES) - 1


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_import_hides_in_a_function(file):
    if str(file.relative_to(PACKAGE)) in LAZY:
        return
    loaded = set(imports(TREES[file].body))
    typed = {name for node in TREES[file].body if for_types(node) for name in imports(ast.walk(node))}
    hidden = set(imports(ast.walk(TREES[file]))) - loaded - typed
    assert not hidden, f"imported where it is used: {sorted(hidden)}"


def length(function):
    """Lines of a function without its docstring."""
    first = function.body[0]
    text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if text else 0)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_file_or_function_is_long(file):
    lines = len(file.read_text().splitlines())
    assert lines <= 250
    functions = [node for node in ast.walk(TREES[file]) if isinstance(node, ast.FunctionDef)]
    long = {node.name: length(node) for node in functions if length(node) > 45}
    assert not long


def packages():
    """The package and all that is below it."""
    yield jaxprune
    for found in pkgutil.walk_packages(jaxprune.__path__, "jaxprune."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def test_no_module_has_the_name_of_a_public_function_or_of_a_library():
    for package in packages():
        modules = {found.name for found in pkgutil.iter_modules(getattr(package, "__path__", []))}
        public = {n for n in getattr(package, "__all__", ()) if not inspect.ismodule(getattr(package, n))}
        wrapped = {"safetensors", "msgpack", "constriction", "zstandard", "orbax", "rich", "matplotlib", "jinja2"}
        assert not modules & (public | wrapped), package.__name__


def test_the_public_surface_stays_small():
    """What stands in two places is one name."""
    public = [(name, getattr(package, name)) for package in packages() for name in getattr(package, "__all__", ())]
    assert len(jaxprune.__all__) <= 35
    assert len({id(value) for _, value in public}) <= 144, sorted({name for name, _ in public})


def test_all_that_trains_nothing_needs_jax_and_numpy_alone():
    program = (
        "import importlib, pkgutil, sys, jaxprune\n"
        "def load(path, prefix):\n"
        "    for module in pkgutil.iter_modules(path, prefix):\n"
        "        if module.name not in ('jaxprune.recovery', 'jaxprune.training'):\n"
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
        "jinja2",
        "sklearn",
        "torch",
        "qwix",
        "constriction",
        "safetensors",
        "mlxtend",
        "hypothesis",
    }


def public_functions():
    for package in packages():
        for name in getattr(package, "__all__", ()):
            if inspect.isfunction(value := getattr(package, name)):
                yield f"{package.__name__}.{name}", value


def test_public_functions_explain_themselves():
    functions = dict(public_functions())
    assert {"jaxprune.prune", "jaxprune.masks.by_sparsity", "jaxprune.saliency.magnitude"} <= set(functions)
    without = [name for name, function in functions.items() if ">>> " not in (inspect.getdoc(function) or "")]
    assert not without, f"no doctest in {without}"
    for name, function in functions.items():
        parameters = inspect.signature(function).parameters
        missing = [p for p in parameters if p not in inspect.getdoc(function)]
        assert not missing, f"{name} does not say what {missing} is"
        assert len(parameters) <= 8, f"{name} has {len(parameters)} parameters"
