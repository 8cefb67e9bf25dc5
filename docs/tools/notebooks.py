"""Makes a notebook of every example, in examples/notebooks, without outputs. Change the example, then run this.

    python docs/tools/notebooks.py

An example's docstring and the comments below its rules become text, what is between them cells; without rules, blank
lines part cells. Pictures appear in the notebook instead of a file, and options are given in the text.
"""

import re
from pathlib import Path

import nbformat
from nbformat import v4

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
RULE = re.compile(r"^# -{20,}\n", re.MULTILINE)
IMPORTS = re.compile(r"(?:(?:(?:import|from) .*)?\n)+")
#: What a script does with its pictures, and a notebook does not.
DROPPED = re.compile(
    r'^(?:matplotlib\.use\("Agg"\)|import .*  # noqa: E402|figure\.savefig\(.*\)|print\("drew .*"\))\n', re.MULTILINE
)
SHORT = 'For a quick look, write `parser.parse_args(["--short"])` below.'


def notebook_of(source: str) -> nbformat.NotebookNode:
    """The notebook of an example, from its text. Equal sources give equal notebooks."""
    _, docstring, code = source.split('"""', 2)
    title, _, about = re.sub(r"\n {4}python .*\n", "", docstring).partition("\n")
    about = re.sub(r"\s*Draws \w+\.png in the current folder\.", "", about).strip()
    text = [f"# {title}", about, SHORT if "--short" in code else ""]
    cells = [v4.new_markdown_cell("\n\n".join(filter(None, text)))]
    code = DROPPED.sub("", code).replace("import matplotlib\n", "import matplotlib.pyplot as plt\n")
    code = code.replace("parse_args()", "parse_args([])")
    imports = IMPORTS.match(code)
    assert imports is not None, "an example imports something"
    first, *parts = RULE.split(code[imports.end() :])
    for piece in [imports[0], *([first] if parts else re.split(r"\n\n+(?=\S)", first))]:
        cells += [v4.new_code_cell(piece.strip())] if piece.strip() else []
    for part in parts:
        comment = re.match(r"(?:# .*\n)*", part)
        text = re.sub(r"^# ", "", comment[0], flags=re.MULTILINE) if comment else ""
        cells += [v4.new_markdown_cell(text.strip())] if text else []
        cells.append(v4.new_code_cell(part[comment.end() if comment else 0 :].strip()))
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def main() -> None:
    folder = EXAMPLES / "notebooks"
    folder.mkdir(exist_ok=True)
    for example in sorted(EXAMPLES.glob("*.py")):
        nbformat.write(notebook_of(example.read_text()), folder / f"{example.stem}.ipynb")


if __name__ == "__main__":
    main()
