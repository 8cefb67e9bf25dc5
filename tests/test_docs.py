"""Every page of the documentation runs, block after block, and prints what it says that it prints."""

import contextlib
import functools
import importlib.util
import io
import re
import shlex
import types
from pathlib import Path

import pytest

import jaxprune as jp
from jaxprune import cli

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLES = DOCS.parent / "examples"
#: The pages, and those with code. The README's blocks are run by test_examples.
ALL = [*sorted(DOCS.glob("*.md")), DOCS.parent / "CONTRIBUTING.md"]
PAGES = [path for path in ALL if "```python" in path.read_text()]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """The fenced blocks of a page as (language, text), indentation removed."""
    for indent, language, text in FENCE.findall(page.read_text()):
        yield language, re.sub(f"^{indent}", "", text, flags=re.MULTILINE)


def run(page):
    """Runs a page: Python blocks in one namespace, commands of ours in bash blocks, other blocks with a name as files.

    Gives (page's text, printed) of each block with output.
    """
    scope = {"__name__": page.stem}
    fenced = list(blocks(page))
    for i, (language, text) in enumerate(fenced):
        assert language in ("python", "text", "bash", "toml", ""), f"{page.name}: nothing checks a {language} block"
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            if language == "python":
                exec(compile(text, f"{page.name}, block {i + 1}", "exec"), scope)
            elif language == "bash":
                commands(text)
            elif language == "toml":
                Path(re.match(r"# (\w+\.toml)", text).group(1)).write_text(text)
        follows = fenced[i + 1] if i + 1 < len(fenced) else ("", "")
        yield follows[1] if follows[0] == "text" else "", printed.getvalue()


def commands(text):
    """Runs the lines of a bash block that call our command; installing and starting servers is for readers alone."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("jaxprune "):
            assert cli.main([*shlex.split(line, comments=True)[1:], "--quiet"]) == 0, line


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_runs_and_prints_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for said, printed in run(page):
        assert plain(printed) == plain(said)


def plain(text):
    """Text without blanks at the ends of its lines, which no editor keeps."""
    return [line.rstrip() for line in text.strip().splitlines()]


def test_text_blocks_are_outputs():
    """No text block stands where nothing compares it with what is printed."""
    for page in PAGES:
        names = [language for language, _ in blocks(page)]
        loose = [i for i, name in enumerate(names) if name == "text" and names[i - 1 : i] not in (["python"], ["bash"])]
        assert not loose, (page.name, loose)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_cells_of_notebooks_are_programs_that_explain_themselves(example):
    text = tool("notebooks").cells_of(example.read_text())
    compile(text, example.name, "exec")
    heads = re.findall(r"^# %%.*$", text, re.MULTILINE)
    assert heads[:2] == ["# %% [markdown]", "# %%"] and len(heads) >= 5
    assert "savefig" not in text and ".parse_args()" not in text


def tool(name):
    """A module of docs/tools."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_complete():
    """Every public name has an entry: by itself, or with its module."""
    text = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    entries = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    with_names = [module for module in map(module_of, entries) if hasattr(module, "__all__")]
    for name in jp.__all__:
        if isinstance(getattr(jp, name), types.ModuleType):
            assert f"jaxprune.{name}" in entries
        else:
            assert f"jaxprune.{name}" in entries or any(name in module.__all__ for module in with_names), name


def module_of(entry):
    """What a dotted name of the reference names."""
    return functools.reduce(getattr, entry.split(".")[1:], jp)


def test_pages_name_what_there_is():
    """``jp.…`` in the text of the pages, in tables too, is the name of something."""
    example = {"jp.saliency.deviation"}  # what CONTRIBUTING shows how to add
    for page in ALL:
        for name in set(re.findall(r"\bjp(?:\.[A-Za-z_]\w*)+", page.read_text())) - example:
            value = jp
            for part in name.split(".")[1:]:
                assert hasattr(value, part), f"{page.name}: {name}"
                value = getattr(value, part)
