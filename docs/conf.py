"""How Sphinx builds the site: `sphinx-build -W --keep-going -c docs . build/docs`; contributing.md has the rest.

The pages are plain Markdown that reads as well on GitHub. What the site needs besides is added to their text here: the
navigation, from the tables of the README files, and the API reference, from docstrings.
"""

import importlib
import inspect
import posixpath
import re
from pathlib import Path

from vitx.plugins import Registry

project = "vitx"
author = "the authors of vitx"
copyright = "the authors of vitx; Apache-2.0"
root_doc = "README"
include_patterns = ["README.md", "docs/*.md", "experiments/**/*.md"]
exclude_patterns = ["build", "runs", "**/.*"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "vitx"
html_show_sourcelink = False
html_copy_source = False
highlight_language = "bash"  # of indented blocks, which are commands

myst_heading_anchors = 4  # links to headings of any page are checked

default_role = "code"  # docstrings write `name`
python_use_unqualified_type_names = True
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
maximum_signature_line_length = 100
napoleon_use_ivar = True

LINK = re.compile(r"\| \[([^]]+)\]\(([^)#]+)\.md\)")  # at the start of a row


def toctree(text: str, folder: str, caption: str = "") -> str:
    """Returns a hidden toctree of the pages that a text lists: those that stand first in a row of a table."""
    entries = []
    for row in text.splitlines():
        if link := LINK.match(row):
            title = link[1].removesuffix(".md").replace("_", " ")
            entries.append(f"{title[0].upper()}{title[1:]} </{posixpath.normpath(posixpath.join(folder, link[2]))}>")
    options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["", "```{toctree}", *options, "", *entries, "```", ""])


def add_navigation(app, name: str, source: list[str]) -> None:
    """Adds the navigation: sections of docs/README.md on the front page, and a README's pages below the README."""
    if name == root_doc:
        _, *sections = re.split(r"^## (.+)$", Path(app.srcdir, "docs/README.md").read_text(), flags=re.MULTILINE)
        source[0] += toctree("| [All pages](README.md) |", "docs")
        for caption, text in zip(sections[::2], sections[1::2], strict=True):
            source[0] += toctree(text, "docs", caption)
    elif name.endswith("/README") and name != "docs/README":
        source[0] += toctree(source[0], posixpath.dirname(name))


def expand_reference(app, name: str, source: list[str]) -> None:
    """Replaces every line "- `name`" of docs/api.md by the signature and docstring of that object."""
    if name == "docs/api":
        source[0] = re.sub(r"^- `([\w.]+)`$", lambda line: directive(line[1]), source[0], flags=re.MULTILINE)


def directive(path: str) -> str:
    """Returns the directive that documents an object: a function, a class, or a registry."""
    module, _, attribute = path.rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, Registry):
        lines = f".. py:data:: {path}\n\n   {found.__doc__.splitlines()[0]} Its names: {', '.join(found)}."
    else:
        lines = f".. auto{'class' if inspect.isclass(found) else 'function'}:: {path}"
    return f"```{{eval-rst}}\n{lines}\n```"


def escape(found: re.Match) -> str:
    """Returns a character that has a meaning in reStructuredText and none in Markdown as itself; code stays."""
    return found[0] if found[0].startswith("`") else "\\" + found[0]


def format_docstring(app, what: str, name: str, obj, options, lines: list[str]) -> None:
    """Turns indented examples of a docstring, as Markdown has them, into literal blocks, and keeps asterisks."""
    paragraphs = re.split(r"\n{2,}", "\n".join(lines))
    for i, paragraph in enumerate(paragraphs):
        if paragraph.startswith("    "):
            paragraphs[i] = f"::\n\n{paragraph}"
        else:
            paragraphs[i] = re.sub(r"`[^`]*`|\*|_(?!\w)", escape, paragraph)
    lines[:] = "\n\n".join(paragraphs).splitlines()


def write_index(app, exception) -> None:
    """Uses the README as the first page of a site."""
    if exception is None:
        Path(app.outdir, "index.html").write_text('<meta http-equiv="refresh" content="0; url=README.html">\n')


def setup(app) -> None:
    app.connect("source-read", add_navigation)
    app.connect("source-read", expand_reference)
    app.connect("autodoc-process-docstring", format_docstring, priority=400)  # before napoleon, at 500
    app.connect("build-finished", write_index)
