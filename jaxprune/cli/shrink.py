"""``jaxprune shrink``: a network of a function of somebody's own, with smaller arrays."""

import argparse
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from jaxprune import checkpoints
from jaxprune.checkpoints.leaf import dtype_of, flat, paths
from jaxprune.cli import shared

SCOPES = ("leaf", "global", "parameters", "flops", "latency")
_SCOPE = """leaf (default): S of the units of each group; global: S of all units, the least important; or until S of the
parameters, of the operations of products, or of the time of a call is saved"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add = parser.add_argument
    add("checkpoint", help="any format")
    add("-o", "--output", required=True, metavar="OUT", help="the file to write; its suffix is the format")
    add("--apply", required=True, metavar="MODULE:FUNCTION", help="the forward function")
    given = parser.add_mutually_exclusive_group(required=True)
    shape = "N,N,...[:DTYPE]"
    given.add_argument("--input-shape", action="append", metavar=shape, help="of an input; repeated for several")
    given.add_argument("--inputs", metavar="FILE", help="a checkpoint of the inputs, in their order, such as batch.npz")
    add("--sparsity", type=shared.fraction, required=True, metavar="S", help="fraction of units to cut, in [0, 1]")
    add("--scope", choices=SCOPES, default="leaf", help=_SCOPE)
    add("--groups", action="append", metavar="PATTERN", help="only these groups may lose units")
    add("--round-to", type=int, default=1, metavar="N", help="widths are multiples of N; default: 1")
    add("--min-keep", type=_number, default=1, metavar="N", help="units, or a fraction of them, that stay at least")
    add("--allow-inexact", action="store_true", help="cut although the small network may differ from the masked one")


def run(args: argparse.Namespace) -> None:
    """Cut whole units out of the network that --apply names, so that its arrays become smaller.

    examples:
      jaxprune shrink model.msgpack --apply my_model:apply --input-shape 1,28,28,1 --sparsity 0.5 -o small.msgpack
      jaxprune shrink model.safetensors --apply my_model:apply --input-shape 1,128:int32 --sparsity 0.3 -o small.npz
      jaxprune shrink model.npz --apply my_model:apply --inputs batch.npz --sparsity 0.5 --round-to 8 -o small.npz

      my_model.py has a function apply(params, *inputs) -> outputs; params is a tree of dicts.
    """
    checkpoints.check_output(args.output, force=args.force)
    checkpoints.format_for(args.output)
    apply = shared.function(args.apply)
    if args.inputs:
        inputs = [jnp.asarray(leaf.read()) for leaf in checkpoints.open(args.inputs).leaves.values()]
    else:
        inputs = [_zeros(text) for text in args.input_shape]
    opened = checkpoints.open(args.checkpoint, max_bytes=args.max_bytes)
    others = checkpoints.held(args.output, opened.others, skip=args.skip_unreadable)
    by_path = {path: name for name, path in paths(opened.leaves).items()}
    params = checkpoints.nested({path: jnp.asarray(opened.leaves[name].read()) for path, name in by_path.items()})
    try:
        inspect.signature(apply).bind(params, *inputs)
    except TypeError as error:
        said = f"it takes {inspect.signature(apply)}, and is called as apply(params, *inputs) with {len(inputs)} inputs"
        raise ValueError(f"--apply {args.apply}: {said}") from error
    spec = jp.structure.ShrinkSpec(args.round_to, args.min_keep, args.groups, allow_inexact=args.allow_inexact)
    shrunk = jp.shrink(apply, params, *inputs, sparsity=args.sparsity, scope=args.scope, spec=spec)
    cut = {by_path[path]: leaf for path, leaf in flat(shrunk.params).items()}
    leaves = {  # what is as large as before is as before, 64-bit numbers included, which JAX would not keep
        name: leaf.read() if leaf.shape == cut[name].shape else np.asarray(cut[name])
        for name, leaf in opened.leaves.items()
    }
    written = checkpoints.write(args.output, leaves, metadata=opened.metadata, others=others, force=args.force)
    shapes = ((name, list(opened.leaves[name].shape), list(leaf.shape)) for name, leaf in leaves.items())
    rows = [{"name": name, "before": before, "after": after} for name, before, after in shapes]
    found = {"path": args.output, "bytes_before": opened.file_bytes, "bytes_after": written}
    found["parameters_before"] = sum(leaf.size for leaf in opened.leaves.values())
    found["parameters_after"] = sum(leaf.size for leaf in leaves.values())
    found |= {"leaves": rows, "report": shrunk.report.to_dict()}
    shared.show(args, found, _text(found, str(shrunk.report), args.wide), opened)


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _zeros(text: str) -> jax.Array:
    """An input of a shape: what is cut depends on the program alone, not on what goes in."""
    sizes, _, dtype = text.partition(":")
    try:
        shape = tuple(int(part) for part in sizes.replace("x", ",").split(",") if part)
    except ValueError as error:
        said = "write numbers between commas, such as 1,28,28,1 or 1,128:int32"
        raise ValueError(f"--input-shape {text!r}: {said}") from error
    return jnp.zeros(shape, dtype_of(dtype or "float32"))


def _text(found: dict[str, Any], report: str, wide: bool) -> str:
    rows = [row | {"parameters": math.prod(row["after"])} for row in found["leaves"]]
    rows = shared.folded(rows, lambda row: row["before"] == row["after"], "unchanged leaves", wide)
    heads, forms = "leaf, before, after, parameters", "{name} {before} {after} {parameters:,}"
    table = shared.table(heads, forms, rows, left=3, wide=wide)
    sizes = shared.smaller(found["bytes_before"], found["bytes_after"])
    return "\n".join([report, "", table, "", f"{found['path']}: {sizes}"])
