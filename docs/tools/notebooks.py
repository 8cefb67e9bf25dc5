"""Makes a notebook of every example, without outputs: a hook of MkDocs, by which the site offers them to be downloaded.

    python docs/tools/notebooks.py FOLDER       # the same without a site

An example's docstring and the comments below its rules become text, what is between them cells; without rules, blank
lines part cells. Pictures appear in the notebook instead of a file, and options are given in the text.
"""

import re
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
RULE = re.compile(r"^# -{20,}\n", re.MULTILINE)
IMPORTS = re.compile(r"(?:(?:(?:import|from) .*)?\n)+")
#: What a script does with its pictures, and a notebook does not.
DROPPED = re.compile(
    r'^(?:matplotlib\.use\("Agg"\)|import .*  # noqa: E402|figure\.savefig\(.*\)|print\("drew .*"\))\n', re.MULTILINE
)
SHORT = 'For a quick look, write `parser.parse_args(["--short"])` below.'


def on_files(files: Any, config: Any) -> Any:
    """Adds notebooks/NAME.ipynb of every example to the files of the site."""
    from mkdocs.structure.files import File

    for name, content in notebooks().items():
        files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def notebooks() -> dict[str, str]:
    """The notebooks by their names."""
    import jupytext

    made = {}
    for path in sorted(EXAMPLES.glob("*.py")):
        notebook = jupytext.reads(cells_of(path.read_text()), fmt="py:percent")
        notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
        made[f"{path.stem}.ipynb"] = jupytext.writes(notebook, fmt="ipynb")
    return made


def cells_of(source: str) -> str:
    """The example as a script in cells, each below a line of ``# %%``: a program as before."""
    _, docstring, code = source.split('"""', 2)
    title, _, about = re.sub(r"\n {4}python .*\n", "", docstring).partition("\n")
    about = re.sub(r"\s*Draws \w+\.png in the current folder\.", "", about).strip()
    code = DROPPED.sub("", code).replace("import matplotlib\n", "import matplotlib.pyplot as plt\n")
    code = code.replace("parse_args()", "parse_args([])")
    imports = IMPORTS.match(code)[0]  # type: ignore
    first, *parts = RULE.split(code[len(imports) :])
    text = [f"# {title}", about, SHORT if "--short" in code else ""]
    cells = [text_cell("\n\n".join(filter(None, text)))]
    pieces = [imports, *([first] if parts else re.split(r"\n\n+(?=\S)", first))]
    cells += [f"# %%\n{piece.strip()}" for piece in pieces]
    for part in parts:
        comment = re.match(r"(?:# .*\n)*", part)[0]  # type: ignore
        cells += [text_cell(re.sub(r"^# ", "", comment, flags=re.MULTILINE))] if comment else []
        cells.append(f"# %%\n{part[len(comment) :].strip()}")
    return "\n\n".join(cell for cell in cells if cell.strip() != "# %%") + "\n"


def text_cell(text: str) -> str:
    return "# %% [markdown]\n" + re.sub(r"^", "# ", text.strip(), flags=re.MULTILINE)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in notebooks().items():
        (folder / name).write_text(content)
