"""Makes Markdown of the docstrings, which are written to be read in a terminal: an extension of Griffe.

Roles such as ``:func:`jaxprune.prune` `` become links, doctests become code blocks, double backticks single ones, and
what Markdown would take for markup (``2**b``, ``a < b``, an exponent with ``_``) is left as it is.
"""

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^([ ]*)>>> .*\n(?:(?![ ]*\n).+\n?)*", re.MULTILINE)
CODE = re.compile(r"((?<=\n\n) {4}[^\n]+(?:\n {4}[^\n]+)*|:[a-z]+:`~?[\w.]+`|``.+?``|`[^`\n]+`)", re.DOTALL)
BOLD = re.compile(r"(?<!\w)\\\*\\\*(\w[^*\n\\]*)\\\*\\\*(?!\w)")
MARKUP = str.maketrans({"*": r"\*", "<": "&lt;", "_": r"\_", "|": "&#124;"})


class Docstrings(griffe.Extension):
    """Rewrites every docstring as soon as it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value, obj.module.path)


def to_markdown(text: str, module: str) -> str:
    """The docstring of an object of that module, as Markdown."""
    parts, end = [], 0
    for example in DOCTEST.finditer(text + "\n"):
        parts += [prose(text[end : example.start()], module), f"```pycon\n{example[0].rstrip()}\n```\n"]
        end = example.end()
    return "".join([*parts, prose(text[end:], module)])


def prose(text: str, module: str) -> str:
    pieces = CODE.split(text)
    pieces[::2] = ["\n".join(map(escaped, piece.split("\n"))) for piece in pieces[::2]]
    pieces[1::2] = [code(piece, module) for piece in pieces[1::2]]
    return "".join(pieces)


def escaped(line: str) -> str:
    """A line without markup, but for what begins a list or names an argument, and for whole words in bold."""
    head = re.match(r"\s*(?:\* |\**\w+(?:, \w+)*:(?= |$))?", line)
    start = head.end() if head else 0
    return BOLD.sub(r"**\1**", line[:start] + line[start:].translate(MARKUP))


def code(piece: str, module: str) -> str:
    """Code in single backticks; a role links to the entry of that name, if the reference has one. Blocks stay."""
    if piece.startswith(" "):
        return piece
    name = piece.rsplit("`", 2)[1].lstrip("~") if piece.startswith(":") else piece.strip("`").strip()
    if not piece.startswith(":"):
        return f"`{name}`"
    target = name if name.startswith("jaxprune") else f"{module}.{name}"
    return f'<autoref optional identifier="{target}">`{name}`</autoref>'
