"""The model card: a Markdown file for the users of an exported model."""

import datetime
import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from alignseg_tf.evaluation.provenance import trained_on_validation
from alignseg_tf.export.agreement import Agreement
from alignseg_tf.model import MIN_IMAGE_SIZE, AlignSeg
from alignseg_tf.prediction.saved_networks import label_space_of
from alignseg_tf.system.environment import machine, versions

CARD_FILE = "MODEL_CARD.md"

# The first words below a card's title.
FIRST_WORDS = "AlignSeg (arXiv 2003.00872) with"


def is_card(path: Path) -> bool:
    """Return whether a file is a model card, by its first words."""
    try:
        return f"\n{FIRST_WORDS} " in path.read_text(encoding="utf-8")[:1000]
    except (OSError, UnicodeDecodeError):
        return False


def model_card(
    model: AlignSeg,
    name: str,
    agreement: Agreement | None,
    quality: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    about: str = "",
    form: str = "",
) -> str:
    """Return the text of a model card.

    Args:
        model: the exported model.
        name: title of the card.
        agreement: the comparison of the export with the model; None for a card of the `.keras`
            file.
        quality: `Report.to_dict` of an evaluation, if there is one.
        run: values of the training run, if they are known.
        about: Markdown: data and their terms, intended use, failures.
        form: sentences on the export's precision and size.
    """
    space, here = label_space_of(model), machine()
    intervals = (quality or {}).get("intervals") or {}
    bounds = intervals.get("mean_iou") or {}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("alignseg_tf.export"),
        finalize=_escaped,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = _percent
    return environment.get_template(CARD_FILE).render(
        model=model,
        name=name,
        first_words=FIRST_WORDS,
        millions=f"{model.count_params() / 1e6:.2f}",
        about=about.strip(),
        agreement=agreement,
        smallest=MIN_IMAGE_SIZE,
        classes=zip(space.classes, space.palette, strict=True),
        quality=quality,
        intervals=intervals,
        # Of fewer than two images, or blocks of them, there is no interval.
        bounds=bounds if bounds.get("low") is not None else None,
        trained_on=trained_on_validation(run or {}),
        run=run,
        form=form,
        processor=", ".join(here["gpus"]) or f"{here['cores']} cores of {here['cpu']}",
        versions=", ".join(f"{name} {version}" for name, version in versions().items()),
        today=datetime.date.today().isoformat(),
    )


def _escaped(value: object) -> str:
    """Return a value as Markdown and HTML show it, on one line, in a table's cell too."""
    if isinstance(value, Markup):  # by the template's filter `safe`
        return value
    printable = "".join(x if x.isprintable() else " " for x in str(value))
    entities = html.escape(printable, quote=False)
    return re.sub(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", entities)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
