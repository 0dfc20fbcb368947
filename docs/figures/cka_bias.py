"""Draws docs/cka-bias.svg: plain and debiased CKA of independent noise against the number of inputs.

``python docs/figures/cka_bias.py`` measures and draws. For two independent Gaussian matrices [n, d] the plain estimate
is about d / (n + d): E||Y'X||^2 = n d^2 over E||X'X||^2 = n^2 d + n d^2 (+ lower orders).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from prismlab.analyse.similarity import cka, debiased_cka, gram

OUT = Path(__file__).parents[1] / "cka-bias.svg"
WIDTH = 1024
INPUTS = tuple(2**k for k in range(3, 12))
REPEATS = 20
COLOURS = {"plain": "#b5703a", "debiased": "#3b7dd8"}
X0, X1, Y0, Y1 = 64, 560, 300, 40
"""Pixels of the axes: left, right, bottom, top."""
LOW, HIGH = -0.35, 1.0


def measure(inputs: int, repeats: int = REPEATS) -> dict[str, list[float]]:
    """Mean and standard deviation of both estimates over independent pairs of noise [inputs, WIDTH]."""
    rng = np.random.default_rng(inputs)
    found: dict[str, list[float]] = {"plain": [], "debiased": []}
    for _ in range(repeats):
        k, m = (gram(rng.standard_normal((inputs, WIDTH))) for _ in range(2))
        for name, value in (("plain", cka(k, m)), ("debiased", debiased_cka(k, m))):
            if value is not None:
                found[name].append(value)
    return {name: [float(np.mean(some)), float(np.std(some, ddof=1))] for name, some in found.items()}


def _x(inputs: float) -> float:
    first, last = math.log2(INPUTS[0]), math.log2(INPUTS[-1])
    return X0 + (X1 - X0) * (math.log2(inputs) - first) / (last - first)


def _y(value: float) -> float:
    return Y0 + (Y1 - Y0) * (value - LOW) / (HIGH - LOW)


def _axes() -> list[str]:
    parts: list[str] = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        width = 1.2 if value == 0 else 0.6
        parts.append(f'<path d="M{X0} {_y(value):.1f}H{X1}" stroke="#8a909c" stroke-width="{width}"/>')
        parts.append(f'<text x="{X0 - 8}" y="{_y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for inputs in INPUTS:
        parts.append(f'<text x="{_x(inputs):.1f}" y="{Y0 + 20}" text-anchor="middle">{inputs:,}</text>')
    middle = (X0 + X1) / 2
    parts.append(f'<text x="{middle}" y="{Y0 + 42}" text-anchor="middle">inputs (states have width {WIDTH:,})</text>')
    parts.append(f'<text x="{X0 - 44}" y="{Y1 - 16}">linear CKA of independent noise; the truth is 0</text>')
    return parts


def _curve(points: dict[int, dict[str, list[float]]], name: str) -> list[str]:
    tint = COLOURS[name]
    line = " ".join(f"{_x(n):.1f},{_y(one[name][0]):.1f}" for n, one in points.items())
    parts = [f'<polyline points="{line}" fill="none" stroke="{tint}" stroke-width="2"/>']
    for n, one in points.items():
        mean, std = one[name]
        bottom, top = _y(max(LOW, mean - std)), _y(mean + std)
        parts.append(f'<path d="M{_x(n):.1f} {bottom:.1f}V{top:.1f}" stroke="{tint}" stroke-width="1.5"/>')
        parts.append(f'<circle cx="{_x(n):.1f}" cy="{_y(mean):.1f}" r="3.2" fill="{tint}"/>')
    return parts


def draw(points: dict[int, dict[str, list[float]]]) -> str:
    """The figure; its numbers stand in its metadata."""
    expected = " ".join(
        f"{_x(n):.1f},{_y(WIDTH / (n + WIDTH)):.1f}" for n in np.geomspace(INPUTS[0], INPUTS[-1], 60).tolist()
    )
    labels = [
        (1150, 0.62, COLOURS["plain"], "plain (the paper's)", "start"),
        (90, 0.78, "#5b616d", "width / (inputs + width)", "middle"),
        (512, 0.07, COLOURS["debiased"], "debiased", "middle"),
    ]
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 690 360" width="690" height="360" '
        'font-family="sans-serif" font-size="13" fill="#23272f">',
        "<title>CKA of independent noise against the number of inputs: plain far above 0, debiased at 0</title>",
        f"<metadata>{json.dumps(points)}</metadata>",
        '<rect width="690" height="360" fill="#ffffff"/>',
        *_axes(),
        f'<polyline points="{expected}" fill="none" stroke="#5b616d" stroke-width="1" stroke-dasharray="4 4"/>',
        *(part for name in COLOURS for part in _curve(points, name)),
        *(
            f'<text x="{_x(n):.1f}" y="{_y(value):.1f}" fill="{tint}" text-anchor="{anchor}">{text}</text>'
            for n, value, tint, text, anchor in labels
        ),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    OUT.write_text(draw({inputs: measure(inputs) for inputs in INPUTS}), encoding="utf-8")


if __name__ == "__main__":
    main()
