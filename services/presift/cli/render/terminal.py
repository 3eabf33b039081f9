"""An explanation in the terminal: kept text is bold, dropped text dim, important text on a warm background."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.text import Text

from presift.cli.render import forecasts, strips
from presift.cli.render.heat import HEAT_LEVELS, HOLD_LEVELS, Piece, pieces
from presift.cli.render.lines import explanation_lines
from presift_client import Explanation

_MIN_BINS, _MAX_BINS = 10, 100
# Below this heat there is no background: if everything had one, nothing would stand out.
_COOL = 2


def show(explanation: Explanation, console: Console) -> None:
    """Print the decision, the routes compared, two strips along the prompt, and the text. If the console has no
    colours, dropped text is printed between `[-` and `-]`."""
    plain = console.color_system is None or console.no_color
    for line in explanation_lines(explanation):
        console.print(Text(line, style="bold"), soft_wrap=True, highlight=False)
    if explanation.routes:
        forecasts.show(explanation.routes, console)
    for text in (_strips(explanation, console.width), _legend(plain), Text(), text_of(explanation, plain=plain)):
        console.print(text, soft_wrap=True, highlight=False)


def text_of(explanation: Explanation, *, plain: bool) -> Text:
    """The styled text of the prompt."""
    text = Text()
    for is_kept, run in groupby(pieces(explanation), key=lambda piece: piece.hold > 0):
        is_marked = plain and not is_kept
        text.append("[-" * is_marked)
        for piece in run:
            text.append(piece.text, style=_style(piece))
        text.append("-]" * is_marked)
    return text


def _style(piece: Piece) -> str:
    words = ["bold"] if piece.hold == HOLD_LEVELS else []
    words += ["underline"] if piece.protected else []
    if piece.heat > _COOL:
        warm = piece.heat / HEAT_LEVELS
        ink = "rgb(255,255,255)" if piece.hold else "rgb(165,150,135)"
        words += [ink, f"on rgb({40 + round(140 * warm)},{28 + round(42 * warm)},0)"]
    elif not piece.hold:
        words.append("dim")
    return " ".join(words)


def _strips(explanation: Explanation, width: int) -> Text:
    bins = max(_MIN_BINS, min(_MAX_BINS, width - 12))
    hot = strips.scaled(strips.binned(strips.importance(explanation), bins))
    kept = strips.scaled(strips.binned(strips.kept_share(explanation), bins))
    text = Text("importance ").append(strips.blocks(hot), style="rgb(214,92,10)")
    return text.append("\nkept       ").append(strips.blocks(kept))


def _legend(plain: bool) -> Text:
    if plain:
        return Text("[-dropped-]")
    legend = Text().append("kept", style="bold").append("  kept in some heads  ").append("dropped", style="dim")
    legend.append("  ").append("protected", style="underline").append("  importance ")
    for heat in range(_COOL + 1, HEAT_LEVELS + 1):
        legend.append(" ", style=_style(Piece("", 0, 1, heat, HOLD_LEVELS, False, 0.0)))
    return legend
