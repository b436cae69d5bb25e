"""A line plot as SVG text: axes, bands, lines. Enough for the figures of docs/, with nothing to install."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["Plot"]

WIDTH, HEIGHT = 760, 330
LEFT, RIGHT, TOP, BOTTOM = 58, 96, 34, 44


class Plot:
    """One figure; x and y in its own units, whatever lies outside the ranges is cut.

    Args:
        title: above it.
        x: lowest and highest, and the ticks between.
        y: likewise.
        x_label: with the unit.
        y_label: with the unit.
    """

    def __init__(
        self, title: str, *, x: Sequence[float], y: Sequence[float], x_label: str, y_label: str
    ) -> None:
        self._x, self._y = x, y
        self._marks = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
            f' font-size="12" role="img" aria-label="{escape(title)}">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
            f'<clipPath id="plot"><rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}"'
            f' height="{HEIGHT - TOP - BOTTOM}"/></clipPath>',
            self._text(LEFT, 20, title, size=14),
            self._text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, anchor="middle"),
            f'<g transform="rotate(-90 14 {HEIGHT / 2})">'
            + self._text(14, HEIGHT / 2, y_label, anchor="middle")
            + "</g>",
        ]
        self._marks += [
            self._text(self._at_x(tick), HEIGHT - BOTTOM + 16, f"{tick:g}", anchor="middle") for tick in x
        ]
        self._marks += [self._text(LEFT - 6, self._at_y(tick) + 4, f"{tick:g}", anchor="end") for tick in y]

    def band(self, low: float, high: float, color: str, label: str) -> None:
        """Fill between two heights, and name it at the right."""
        top, bottom = self._at_y(min(high, self._y[-1])), self._at_y(low)
        self._marks.append(
            f'<rect x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{bottom - top:.1f}"'
            f' fill="{color}"/>'
        )
        self._marks.append(self._text(WIDTH - RIGHT + 6, (top + bottom) / 2 + 4, label))

    def line(
        self, x: Sequence[float], y: Sequence[float], color: str, *, width: float = 1.4, dashes: str = ""
    ) -> None:
        """Join the points."""
        points = " ".join(f"{self._at_x(a):.1f},{self._at_y(b):.1f}" for a, b in zip(x, y, strict=True))
        self._marks.append(
            f'<polyline clip-path="url(#plot)" fill="none" stroke="{color}" stroke-width="{width}"'
            f' stroke-dasharray="{dashes}" points="{points}"/>'
        )

    def label(self, y: float, text: str, color: str = "#333") -> None:
        """Text at the right end of a height."""
        self._marks.append(self._text(WIDTH - RIGHT + 6, self._at_y(y) + 4, text, color=color))

    def svg(self) -> str:
        """The whole file."""
        frame = (
            f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"'
            ' fill="none" stroke="#888"/>'
        )
        return "\n".join([*self._marks, frame, "</svg>", ""])

    def _at_x(self, value: float) -> float:
        share = (value - self._x[0]) / (self._x[-1] - self._x[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def _at_y(self, value: float) -> float:
        share = (value - self._y[0]) / (self._y[-1] - self._y[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    @staticmethod
    def _text(
        x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, color: str = "#333"
    ) -> str:
        return (
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{color}">'
            f"{escape(text)}</text>"
        )
