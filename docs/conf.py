"""How Sphinx builds the documentation: `make docs`, or `make docs NOTEBOOKS=off`.

A built page loads nothing from other hosts: formulas are written as MathML here, not set by a
script there. Docstrings keep the form that the rest of the code has; `adapt_docstring` says how
that becomes Sphinx's.
"""

import os
import re
import runpy
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx import addnodes
from sphinx.util import inspect
from sphinx.util.docutils import SphinxRole
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
# By their paths: importing the package would import TensorFlow, with its greetings.
runpy.run_path(str(ROOT / "alignseg_tf" / "system" / "quiet.py"))["import_tensorflow_quietly"]()
release = version = runpy.run_path(str(ROOT / "alignseg_tf" / "version.py"))["__version__"]
project = "alignseg_tf"
author = project_copyright = "The alignseg_tf authors"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
# A name of this package that leads nowhere is a warning. Those of other packages lead nowhere:
# what there is to link to would have to be downloaded.
nitpicky = True
nitpick_ignore_regex = [("py:obj", ".*"), ("py:.*", r"(?!alignseg_tf\b).*")]

html_theme = "furo"
html_title = f"alignseg_tf {release}"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = html_show_sourcelink = False
highlight_language = "none"  # of indented blocks: commands, folders, JSON
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off" if os.environ.get("NOTEBOOKS") == "off" else "cache"
nb_execution_timeout = 900  # seconds a cell
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "remove"

default_role = "code_or_link"
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 80
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "special-members": "__call__"}
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]

# Sections that hold a text. Napoleon would take what is before a colon in it for a type.
TEXT_SECTIONS = ("Shape", "Returns", "Yields", "Reference")
# What Keras calls, and nobody else: the same in every class. And what makes the command line.
LEFT_OUT = re.compile(
    r"build|compute_output_shape|get_config|from_config|loss_of_pixels|weights_of_pixels"
    r"|update_step|finalize_variable_values|on_(epoch|train|test|predict)_\w+"
    r"|add_\w+_arguments|\w+_from_arguments"
)


def adapt_docstring(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Name the bases of a class, keep columns as they are written, make fields of texts."""
    adapted = []
    if what == "class" and (bases := public_bases(obj)):
        adapted.append(f"Base: {', '.join(bases)}")
    for paragraph in re.split(r"\n{2,}", "\n".join(lines)):
        head, _, body = paragraph.partition("\n")
        rows = paragraph.splitlines()
        in_columns = sum(bool(re.search(r"\S {2,}\S", row)) for row in rows) > 1
        is_table = re.search(r"^ *=+ +=", paragraph)
        if head.endswith(":") and head[:-1] in TEXT_SECTIONS:
            adapted.append(f":{'returns' if head == 'Returns:' else head[:-1]}:\n{body}")
        elif in_columns and not is_table and ">>>" not in paragraph:
            adapted.append("::\n\n" + "\n".join(f"    {row}" for row in rows))
        else:
            adapted.append(paragraph)
    lines[:] = "\n\n".join(adapted).splitlines()


def public_bases(cls: type) -> list[str]:
    """Return the bases of a class: those of Keras as users import them, and no private ones."""
    names = []
    for base in cls.__bases__:
        if base.__module__.startswith("keras.src."):
            package = base.__module__.split(".")[2]
            names.append(f"`keras.{'' if package == 'models' else package + '.'}{base.__name__}`")
        elif base.__name__.startswith("_"):
            names += public_bases(base)
        elif base.__module__ != "builtins":
            names.append(f"`{base.__name__}`")
    return names


def tidy_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, result: Any
) -> tuple[str | None, Any]:
    """Leave out `Any`, which says nothing, and give classes of Keras their own arguments."""
    if what == "class" and signature == "(*args, **kwargs)":  # of the `__new__` that Keras adds
        signature = inspect.stringify_signature(
            inspect.signature(obj.__init__, bound_method=True),
            show_return_annotation=False,
            unqualified_typehints=True,
        )
    if signature is not None:
        signature = re.sub(r": ~?typing\.Any( \| None)?(?= =|[,)])", "", signature)
        signature = signature.replace("<factory>", "...")
    if result is not None:
        result = re.sub(r"~?tensorflow\.[\w.]*\.DatasetV2", "tensorflow.data.Dataset", result)
    return signature, None if re.fullmatch(r"~?typing\.Any", result or "") else result


def leave_out(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Skip what only Keras or the command line calls."""
    return True if LEFT_OUT.fullmatch(name) else None


class CodeOrLink(SphinxRole):
    """What stands between single backticks: code, and a link where it names something here."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the code, which the name of something here will turn into a link."""
        code = nodes.literal(self.rawtext, self.text)
        if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", self.text):
            return [code], []
        context = {key: self.env.ref_context.get(key) for key in ("py:module", "py:class")}
        return [
            addnodes.pending_xref(
                self.rawtext, code, refdoc=self.env.docname, refdomain="py", reftype="obj",
                reftarget=self.text, **context,
            )
        ], []  # fmt: skip


def find_by_last_name(app: Any, env: Any, node: Any, content: Any) -> nodes.Node | None:
    """Resolve the bare name of a class or a function, wherever it is, if only one has it."""
    if node.get("refdomain") != "py" or node.get("reftype") not in ("obj", "class"):
        return None
    found = [
        (name, entry)
        for name, entry in env.get_domain("py").objects.items()
        if name.endswith(f".{node['reftarget']}")
        and entry.objtype in ("class", "exception", "function")
        and not entry.aliased
    ]
    if len(found) != 1:
        return None
    name, entry = found[0]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)


def let_pages_link_to_names(app: Any, doctree: nodes.document) -> None:
    """Make `api/layers.md#alignseg_tf.layers.ResizeLike` a link that MyST finds."""
    slugs = app.env.metadata[app.env.docname].setdefault("myst_slugs", {})
    for signature in doctree.findall(addnodes.desc_signature):
        for name in signature["ids"]:
            slugs.setdefault(name, (signature.line, name, name))


def visit_math(translator: Any, node: nodes.Element) -> None:
    """Write a formula as MathML, which browsers set by themselves."""
    is_block = isinstance(node, nodes.math_block)
    formula = latex2mathml.tex2mathml(node.astext(), as_block=is_block)
    translator.body.append(f'<div class="math">{formula}</div>\n' if is_block else formula)
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Connect the above."""
    app.add_role("code_or_link", CodeOrLink())
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("autodoc-process-docstring", adapt_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", tidy_signature)
    app.connect("autodoc-skip-member", leave_out)
    app.connect("doctree-read", let_pages_link_to_names)
    app.connect("missing-reference", find_by_last_name)
