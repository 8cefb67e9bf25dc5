"""How long do the first and the second call on a tree of many leaves take?

Trees of 200 and 1,000 leaves of 5 shapes. The first call traces and compiles, in a new process with nothing cached; a
later one finds everything ready. What is jitted by the user is one program for the whole tree. Each figure is the
median of three processes; 200 calls of a trivial jitted function stand beside the second calls.
"""

import sys
from os.path import dirname

if not __package__:  # run as a file: its directory leads the path, and select.py would hide the standard module
    sys.path[0] = dirname(dirname(__file__))

import json
import os
import subprocess

from benchmarks._report import Table, Target, options, report
from benchmarks._timer import Case, Row

ROUNDS = 3
#: What is called, the most seconds of the first call, and the most milliseconds of the second.
CALLS = {
    "prune, global": ("lambda p: jp.prune(p, 0.8, scope='global').params", 5, 60),
    "prune": ("lambda p: jp.prune(p, 0.8).params", 3, 60),
    "fake_quant": ("lambda p: jp.fake_quant(p, 4)", 4, 40),
    "compress": ("lambda p: jp.compress(p, 4).nbytes", 5, 1000),
    "report": ("lambda p: jp.report(p, p).total.parameters", None, None),
    "prune, global, in one jit": ("jax.jit(lambda p: jp.prune(p, 0.8, scope='global').params)", 8, None),
    "prune in one jit": ("jax.jit(lambda p: jp.prune(p, 0.8).params)", 8, None),
    "200 trivial jitted calls": ("lambda p: [trivial(x) for x in list(p.values())[:200]]", None, None),
}
PROGRAM = """
import json, sys, time
import jax, jax.numpy as jnp, numpy as np
import jaxprune as jp
rng, shapes = np.random.default_rng(0), [(64, 64), (64, 256), (256, 64), (16, 64), (128, 128)]
tree = {f"layer_{i}": jnp.asarray(rng.normal(size=shapes[i % 5]).astype("f4")) for i in range(COUNT)}
trivial = jax.jit(lambda x: x)
call, seconds, cpu = CALL, [], []
for _ in range(6):
    start, used = time.perf_counter(), time.process_time()
    jax.block_until_ready(call(tree))
    seconds.append(time.perf_counter() - start)
    cpu.append(time.process_time() - used)
print(json.dumps([[seconds[0], cpu[0]], [min(seconds[1:]), min(cpu[1:])]]))
"""


def main() -> None:
    arguments = options(__doc__)
    tables, targets = [], []
    for count in (5,) if arguments.small else (200, 1000):
        first, second = {}, {}
        for name, (call, most, warm) in CALLS.items():
            first[name], second[name] = _measured(name, call, count)
            shown = f"{first[name].median:.2f} s, then {1e3 * second[name].median:.1f} ms"
            print(f"{count} leaves, {name}: {shown}", file=sys.stderr, flush=True)
            often = 1 if count <= 200 else 2 if "jit" not in name else 5
            if most:
                targets.append(Target(f"{count} leaves, {name}: first call, s", first[name].median, "<=", most * often))
            if warm and count <= 200:
                targets.append(Target(f"{count} leaves, {name}: second, ms", 1e3 * second[name].median, "<=", warm))
        tables += [Table(f"{count} leaves, first call", first), Table(f"{count} leaves, second call", second)]
    report(arguments, "compile_time", {"shapes": 5, "dtype": "float32"}, tables, targets)


def _measured(name: str, call: str, count: int) -> tuple[Row, Row]:
    first, second = Row(Case(name, lambda: None)), Row(Case(name, lambda: None))
    unset = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    program = PROGRAM.replace("COUNT", str(count)).replace("CALL", call)
    for _ in range(ROUNDS):
        done = subprocess.run([sys.executable, "-c", program], env=unset, check=True, capture_output=True, text=True)
        for row, (seconds, cpu) in zip((first, second), json.loads(done.stdout), strict=True):
            row.seconds.append(seconds)
            row.cpu_seconds.append(cpu)
    return first, second


if __name__ == "__main__":
    main()
