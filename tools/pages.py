"""HTML pages of executed notebooks that need no other file, no script and no network.

    write_page(notebook, Path("pages/03_configure_dpo.html"), names)
    write_index([entry("03_configure_dpo", notebook)], Path("pages/index.html"))

Formulas become MathML, which browsers set by themselves. Links between notebooks lead to their
pages. An index has, of each lesson, its question, minutes and key figure.
"""

import re
from dataclasses import dataclass

from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat.v4 import new_markdown_cell, new_notebook

from helpers.setup.tracks import TRACKS
from tools.outputs import tags

# Jupyter's own page without what it loads from elsewhere; a cell that JupyterLab shows folded is
# folded here, too, under its first line.
TEMPLATE = """\
{%- extends "lab/index.html.j2" -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}<style>math { font-size: 115%; }</style>{%- endblock -%}
{%- block input_group -%}
{%- if cell.metadata.get("jupyter", {}).get("source_hidden") -%}
<details>
<summary class="jp-RenderedHTMLCommon" style="margin-left: 72px">
{{ cell.source.splitlines()[0].removeprefix("# @title ") | escape }}
</summary>
{{ super() }}
</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock input_group -%}
"""


@dataclass(frozen=True)
class Entry:
    """One lesson in the index and in the table of `make course`."""

    name: str  # of its notebook and page, without the ending
    title: str
    question: str
    minutes: float
    key_figure: str


def entry(name, notebook, minutes=None):
    """The entry of an executed notebook; `minutes`, if not measured, are those it states."""
    opening = notebook.cells[0].source
    asked = re.search(r"^\*\*The question:\*\*(.+?)(?:\n\n|\Z)", opening, re.DOTALL | re.MULTILINE)
    question = " ".join(asked[1].split()) if asked else ""
    minutes = stated_minutes(notebook, "pocket") if minutes is None else minutes
    title = opening.splitlines()[0].removeprefix("# ")
    return Entry(name, title, question, minutes, key_figure(notebook))


def stated_minutes(notebook, track):
    """The minutes that a lesson's first cell states for a track, or None.

    Read from a line such as "pocket (2 CPU cores): about 3 minutes", also in a table; the text up
    to the name of the next track counts.
    """
    others = "|".join(TRACKS)
    time = r"(\d+(?:\.\d+)?)\s*(min|s)(?:utes?|ec|econds?)?\b"
    pattern = rf"\b{track}\b(?:(?!\b(?:{others})\b).)*?{time}"
    found = re.search(pattern, notebook.cells[0].source, re.IGNORECASE)
    return found and float(found[1]) / (60 if found[2].lower() == "s" else 1)


def key_figure(notebook):
    """What the cell tagged `key-figure` prints, as one line, or "" where there is none."""
    cells = [cell for cell in notebook.cells if "key-figure" in tags(cell)]
    printed = [o.text for cell in cells for o in cell.outputs if o.get("name") == "stdout"]
    return " ".join("".join(printed).split())


class PageRenderer(IPythonRenderer):
    """Markdown to HTML with MathML, and with links to pages in place of notebooks."""

    def __init__(self, pages, **options):
        super().__init__(escape=False, **options)
        self.pages = pages

    def inline_math(self, body):
        return convert(body)

    def block_math(self, body):
        return convert(body, display="block")

    def latex_environment(self, name, body):
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")

    def link(self, text, url, title=None):
        notebook = re.fullmatch(r"(\w+)\.ipynb(#.*)?", url)
        if notebook and notebook[1] not in self.pages:
            return text  # a link that leads nowhere is none
        return super().link(text, f"{notebook[1]}.html" if notebook else url, title)


class PageExporter(HTMLExporter):
    """nbconvert's exporter with our renderer; `pages` are the names that links may lead to."""

    def __init__(self, pages):
        super().__init__(raw_template=TEMPLATE)
        self.pages = pages

    @pass_context
    def markdown2html(self, context, source):
        attachments = context.get("cell", {}).get("attachments", {})
        return MarkdownWithMath(PageRenderer(self.pages, attachments=attachments)).render(source)


def page_of(notebook, name, pages):
    """The HTML page of a notebook. `pages`: names of the notebooks with a page in its folder."""
    names = {"metadata": {"name": name}}
    return PageExporter(frozenset(pages)).from_notebook_node(notebook, resources=names)[0]


def write_page(notebook, path, pages):
    """Write the page of a notebook; `pages` as for `page_of`."""
    path.write_text(page_of(notebook, path.stem, pages), encoding="utf-8")


def write_index(entries, path):
    """Write the page that leads to all others, a row for each entry."""
    rows = ["# The lessons", "", "| lesson | the question it answers | minutes | key figure |"]
    rows += ["|---|---|---|---|"]
    for one in entries:
        question, figure = map(plain, (one.question, one.key_figure))
        link = f"[{plain(one.title)}]({one.name}.ipynb)"
        rows.append(f"| {link} | {question} | {one.minutes:.1f} | {figure} |")
    notebook = new_notebook(cells=[new_markdown_cell("\n".join(rows))])
    write_page(notebook, path, [one.name for one in entries])


def plain(text):
    """Markdown that shows the text as it is."""
    return re.sub(r"([\\`*_\[\]<>$|~])", r"\\\1", text)
