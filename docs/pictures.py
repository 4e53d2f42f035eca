"""MkDocs hook: the pictures of the start page, made by the build from the committed results and the model in the package."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from mkdocs.structure.files import File

RESULTS = Path(__file__).resolve().parent.parent / "results"
PREMIUM = re.compile(r"mean ([\d.]+), largest ([\d.]+) \((\w+)\)")
STYLE = {"svg.hashsalt": "tokenry", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def on_files(files: Any, config: Any) -> Any:
    """Draw all three."""
    for name, draw in (("token_map", token_map), ("quality", quality), ("premiums", premiums)):
        files.append(File.generated(config, f"figures/{name}.svg", content=draw()))
    return files


def svg(figure: Figure) -> str:
    """A figure as SVG that is the same every time."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None}, facecolor="white")
    return stream.getvalue()


def token_map() -> str:
    """What a quarter of the tokens shows of one held-out picture, by method; what was dropped is grey."""
    from tokenry.lab.beds.vqa import load_vqa, vqa_items
    from tokenry.lab.compare.methods import quick_methods, visual_method

    bed, items = load_vqa(), vqa_items(split="test", n=1, seed=3)
    names = quick_methods()
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 2.0), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
            with visual_method(name, 0.25, 0).attach(bed.model) as trace:
                said = bed.answer(items, batch_size=1)[0]
            axes.imshow(_shown(items[0].image.numpy(), trace))
            axes.set_title(f"{name}: {said}", fontsize=8)
            axes.axis("off")
        figure.suptitle(f"{items[0].question}? ({items[0].answer})", fontsize=9)
        return svg(figure)


def _shown(image: Any, trace: Any) -> Any:
    """The picture with the dropped patches greyed."""
    kept = next((entry for entry in trace.of_image(0) if entry.indices.numel()), None)
    if kept is None:
        return image
    rows, columns = kept.grid
    height, width = image.shape[0] // rows, image.shape[1] // columns
    shown = 0.2 * image.astype(float) + 185
    for index in kept.indices.tolist():
        top, left = index // columns * height, index % columns * width
        shown[top : top + height, left : left + width] = image[top : top + height, left : left + width]
    return shown.astype("uint8")


def quality() -> str:
    """Quality over kept tokens of the committed comparison; bars are 95 % intervals."""
    body = json.loads((RESULTS / "compare" / "pruning.json").read_text(encoding="utf-8"))
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        full = next(row for row in body["rows"] if row["keep"] == 1)
        axes.axhline(full["quality"], color="0.4", linestyle="--", linewidth=1, label="no pruning")
        for method in dict.fromkeys(row["method"] for row in body["rows"] if row["keep"] < 1):
            rows = [row for row in body["rows"] if row["method"] == method]
            spread = [[max(r["quality"] - r["low"], 0) for r in rows], [max(r["high"] - r["quality"], 0) for r in rows]]
            axes.errorbar(
                [r["kept"] for r in rows], [r["quality"] for r in rows], yerr=spread, marker="o", capsize=2, label=method
            )
        axes.set_xlabel(f"visual tokens kept of {full['total']:.0f}")
        axes.set_ylabel(body["quality"])
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return svg(figure)


def premiums() -> str:
    """Mean and largest premium of real tokenizers over a parallel text, from the claim's committed result."""
    facts = json.loads((RESULTS / "premium.small.json").read_text(encoding="utf-8"))["seeds"]["0"]["facts"]
    found = {
        name.removeprefix("premium_guide_"): PREMIUM.fullmatch(text)
        for name, text in facts.items()
        if name.startswith("premium_guide_")
    }
    rows = sorted(((float(m[1]), float(m[2]), m[3], name) for name, m in found.items() if m), reverse=True)
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.barh(range(len(rows)), [largest for _, largest, _, _ in rows], color="#c5cae9", label="dearest language")
        axes.barh(range(len(rows)), [mean for mean, *_ in rows], height=0.5, color="#3f51b5", label="mean of the languages")
        for place, (mean, largest, language, _) in enumerate(rows):
            axes.annotate(
                f"{mean:.2f}; {largest:.2f} ({language})", (largest, place), xytext=(4, -3), textcoords="offset points"
            )
        axes.set_yticks(range(len(rows)), [name for *_, name in rows])
        axes.axvline(1.0, color="0.4", linewidth=0.8)
        axes.set_xlabel("tokens over those of the same text in English")
        axes.margins(x=0.15)
        axes.legend(frameon=False, loc="upper right")
        return svg(figure)
