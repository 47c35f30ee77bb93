from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.system import fonts
from alignseg_tf.visualization import legend

MONO = str(Path(fonts.MAIN_FONT).with_name("DejaVuSansMono.ttf"))
ARC, HOUSE = "\u2312", "\u5bb6"  # in DejaVu Sans Mono only; in no DejaVu font


@pytest.fixture(autouse=True)
def one_system_font(monkeypatch):
    monkeypatch.setattr(fonts, "system_fonts", lambda: (MONO,))
    monkeypatch.setattr(fonts, "_warned", set())
    fonts.font_of.cache_clear()
    yield
    fonts.font_of.cache_clear()


def drawn(text, **kwargs):
    image = Image.new("L", (200, 40), 255)
    fonts.draw_text(ImageDraw.Draw(image), (20, 20), text, 16, 0, **kwargs)
    return np.asarray(image)


def test_letters_of_many_scripts_differ():
    for one, other in (("é", "ü"), ("ж", "щ"), (ARC, "\u2313")):
        assert (drawn(one) != drawn(other)).any()
    assert fonts.font_of("ж") == fonts.MAIN_FONT
    assert fonts.font_of(ARC) == MONO
    assert fonts.text_length(f"a{ARC}b", 16) > fonts.text_length("ab", 16) + 5
    one, other = (legend(LabelSpace((name,), ((9, 9, 9),)), 120) for name in (ARC, "\u2313"))
    assert (one != other).any()


def test_one_warning_names_the_letters_that_no_font_has():
    with pytest.warns(UserWarning, match=f"no font of this system has {HOUSE}: boxes") as caught:
        drawn(f"{HOUSE}1")
        drawn(f"a {HOUSE}")
    assert len(caught) == 1


def test_text_stands_around_its_place():
    rows, columns = np.nonzero(drawn("HHHH") < 128)
    assert abs(rows.mean() - 20) < 2
    assert columns.min() >= 20
    _, columns = np.nonzero(drawn("HHHH", centred=True) < 128)
    assert columns.min() < 10


def test_figures_show_names_as_they_are():
    names = ["$\\frac{$", "$x$", f"{ARC}", f"{HOUSE}_1"]
    with (
        pytest.warns(UserWarning, match=f"no font of this system has {HOUSE}") as caught,
        fonts.names_in_figures(names),
    ):
        figure = Figure()
        axes = figure.subplots()
        axes.set_xticks(range(len(names)), names)
        figure.canvas.draw()
        labels = axes.get_xticklabels()
        assert [label.get_text() for label in labels] == names
        assert not any(label.get_parse_math() for label in labels)
        assert "DejaVu Sans Mono" in labels[2].get_fontfamily()
    assert len(caught) == 1
    assert matplotlib.rcParams["text.parse_math"] is True
