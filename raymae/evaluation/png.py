"""PNG files of figures."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def png(figure: Figure) -> bytes:
    """Encode a figure as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a class may be named "$a$", and "$\a" would fail to parse
    sink = io.BytesIO()
    figure.set_dpi(110)
    FigureCanvasAgg(figure).print_png(sink)  # `savefig` draws a figure twice, the first time for its layout alone
    return sink.getvalue()
