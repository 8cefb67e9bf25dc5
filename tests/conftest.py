"""How the tests run: programs that compile soon, each compiled once; the same hypothesis examples in every run.

Most of the time goes into compiling small programs, so LLVM does not optimize them: a third less. XLA's own passes and
fusion stay, but not what may contract a product with a sum; so what promises bits has to be run by the compiler that
users have too: ``XLA_FLAGS= python -m pytest -m "" --hypothesis-profile thorough``, which takes long. Flags in the
environment win over these. The workers, and the scripts that tests start, share one folder of compiled programs, new
for every run and gone after it.
"""

import gc
import os
import shutil
import tempfile
from importlib.metadata import version

import numpy as np
import pytest
from hypothesis import settings

FLAGS = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):  # the quicker of two ways to fuse, which later ones do not know; one module
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"

settings.register_profile("quick", derandomize=True, deadline=None, max_examples=10)
settings.register_profile("thorough", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("quick")

gc.set_threshold(50_000, 20, 20)  # tracing makes objects by the million, hardly any of them garbage

# Before anything asks JAX for a device. Workers take over what the process that started them has set.
os.environ.setdefault("XLA_FLAGS", FLAGS)
os.environ["COLUMNS"] = "80"  # what tables of the command line fit
_own_folder = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if _own_folder:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxprune-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


collect_ignore = ["fuzz_files.py", "fuzz_checkpoints.py", "typing"]  # run by hand, and read by pyright alone


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Neighbours run in one process, which has traced what they share; whoever is done early takes from the other."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_collection_finish():
    """No search among the modules."""
    gc.freeze()


def pytest_runtest_setup(item):
    """A test draws the same from its module's generators whatever ran before it: each has a seed of its own."""
    for generator in vars(item.module).values() if hasattr(item, "module") else ():
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = np.random.default_rng([*item.nodeid.encode()]).bit_generator.state


def pytest_unconfigure():
    """The process that made the folder takes it away, after its workers have ended."""
    if _own_folder:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
