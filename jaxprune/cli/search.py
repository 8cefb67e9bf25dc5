"""``jaxprune search``: a width for each leaf, by what it costs a loss."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxprune as jp
from jaxprune import checkpoints, host
from jaxprune.checkpoints import nested
from jaxprune.checkpoints.leaf import flat, paths
from jaxprune.cli import attempts, compress, data, goals, recipe, shared
from jaxprune.cli.treatments import Recipe
from jaxprune.files import lossy

_OPTIONS = ("axis", "block_size", "side", *shared.CHOICES)
_LOSS = "function(params) -> number, lower is better, which JAX can trace; params is a tree of dicts"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add = parser.add_argument
    add("checkpoint", help="any format")
    add("-o", "--output", required=True, metavar="OUT", help="the file to write, such as model.jp")
    add("--loss", required=True, metavar="MODULE:FUNCTION", help=_LOSS)
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("--target-size", metavar="SIZE", help="the most bytes of the file, such as 6MB: the least loss")
    one.add_argument("--max-loss", type=float, metavar="L", help="the largest loss: the smallest file")
    add("--bits", default="2,3,4,6,8", metavar="B,B,...", help="the widths; a leaf may stay as it is; %(default)s")
    add("--budget", type=int, metavar="N", help="evaluations of the loss; by default more than twice the leaves")
    add("--report", metavar="MODULE:FUNCTION", help="another loss, on other data, of the result alone")
    add("--png", metavar="FILE", help="draw what was tried (needs matplotlib)")
    recipe.add_options(parser, _OPTIONS)


def run(args: argparse.Namespace) -> None:
    """Find the width of each leaf: the least loss of a size, or the smallest file of a loss.

    examples:
      jaxprune search model.safetensors -o model.jp --loss my_model:loss --target-size 6MB
      jaxprune search model.npz -o model.jp --loss my_model:loss --max-loss 0.35 --report my_model:test_loss
      jaxprune search model.npz -o model.jp --loss my_model:loss --target-size 60kB --bits 3,4,5 --png tried.png

      my_model.py has a function loss(params) -> number, lower is better, that JAX can trace; params is a tree of dicts.
      The data that choose flatter what they chose: --report takes others.
    """
    compress.check_output(args)
    if args.png:
        checkpoints.check_output(args.png, force=args.force)
        host.library("matplotlib", "jaxprune[plots]")
    widths = sorted({int(bits) for bits in goals.numbers(args.bits, "--bits", 1, 16) if bits is not None})
    loss, report = shared.function(args.loss), shared.function(args.report) if args.report else None
    most = None if args.target_size is None else goals.size(args.target_size)
    opened = checkpoints.open(args.checkpoint, max_bytes=args.max_bytes)
    checkpoints.held(args.output, opened.others, skip=args.skip_unreadable)
    wanted = recipe.resolve(recipe.from_options(args, _OPTIONS) | {"bits": widths[0]}, opened.leaves)
    params, names = data.params_of(wanted), {path: name for name, path in paths(wanted.leaves).items()}
    chosen = {path: names[path] for path in names if names[path] in wanted.treatments}
    methods = {"bits": (lambda params, bits: _rounded(wanted, chosen, params, bits), widths)}
    table = jp.sensitivity(loss, params, methods, where=lambda path, _: path in chosen, progress=args.progress)
    minimize, key, limit = ("bytes", "loss", args.max_loss) if most is None else ("loss", "bytes", float(most))
    while True:
        best = jp.search(loss, params, table, minimize=minimize, limits={key: limit}, budget=args.budget, report=report)
        taken = {chosen[path]: option.setting for path, option in best.settings.items()}
        made = attempts.once(attempts.Work(_at(wanted, taken), opened.metadata, None, {}, None, args.progress))
        over = 0 if most is None else made.made.nbytes - most
        if over <= 0:
            break
        limit -= over  # what stands in the header of this file beside the codes, such as its metadata
    found = compress.written(args, opened, made, True)
    found |= {"values": best.values, "reported": best.reported, "evaluations": best.evaluations}
    found["front"] = [{"bytes": one.values["bytes"], "loss": one.values["loss"]} for one in best.front]
    if args.png:
        axes = best.plot(host.library("matplotlib.figure", "jaxprune[plots]").Figure().subplots())
        with host.written_whole(checkpoints.check_output(args.png, force=args.force)) as beside:
            axes.figure.savefig(beside, format=Path(args.png).suffix[1:] or "png", dpi=150)
    shared.show(args, found, f"{best}\n\n{compress.text(found, args.wide)}", opened)


def _at(wanted: Recipe, taken: Mapping[str, int | None]) -> Recipe:
    """With a width for each leaf, or none for those that stay as they are."""
    said = {name: {key: one for key, one in said.items() if key != "bits"} for name, said in wanted.treatments.items()}
    widths = {name: {} if bits is None else {"bits": float(bits)} for name, bits in taken.items()}
    return replace(wanted, treatments={name: said[name] | widths[name] for name in said})


def _rounded(wanted: Recipe, chosen: Mapping[str, str], params: Any, bits: int) -> Any:
    """The parameters with codes of a width in place of the chosen leaves."""
    leaves = flat(params)
    for path, name in chosen.items():
        made = jp.quantize(leaves[path], bits, spec=wanted.spec(name), where=lambda *_: True)
        leaves[path] = lossy.decodable(made)  # as it is in the file
    return nested(leaves)
