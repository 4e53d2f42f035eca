"""A bar chart as SVG text, drawn without a plotting package so that a report can always be built."""

from __future__ import annotations

from html import escape

_ROW, _LEFT, _WIDTH = 26, 190, 640


def arm_bars(means: dict[str, float], metric: str) -> str:
    """Horizontal bars of the arms' means, best first; the axis starts at 0 or at the lowest negative value."""
    rows = sorted(means.items(), key=lambda item: -item[1])
    low, high = min(0.0, *means.values()), max(0.0, *means.values())
    span = (high - low) or 1.0
    height = _ROW * len(rows) + 30

    def x(value: float) -> float:
        return _LEFT + (value - low) / span * (_WIDTH - _LEFT - 70)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" aria-label="{escape(metric)} per arm" '
        'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" font-size="13">'
    ]
    for number, (arm, value) in enumerate(rows):
        top = 6 + number * _ROW
        start, end = sorted((x(0.0), x(value)))
        parts.append(f'<text x="{_LEFT - 8}" y="{top + 14}" text-anchor="end" fill="#1c2530">{escape(arm)}</text>')
        parts.append(f'<rect x="{start:.1f}" y="{top}" width="{max(end - start, 1):.1f}" height="18" rx="2" fill="#0b6bcb"/>')
        parts.append(f'<text x="{x(max(value, 0.0)) + 6:.1f}" y="{top + 14}" fill="#1c2530">{value:.3f}</text>')
    parts.append(f'<line x1="{x(0.0):.1f}" x2="{x(0.0):.1f}" y1="0" y2="{height - 26}" stroke="#5b6877"/>')
    parts.append(f'<text x="{x(0.0):.1f}" y="{height - 8}" text-anchor="middle" fill="#5b6877">0</text></svg>')
    return "".join(parts)
