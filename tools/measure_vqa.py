"""Measure the packaged visual-question-answering model, write acceptance.json beside its weights and the table on its page.

python tools/measure_vqa.py [--folder DIR] [--items 800]
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from tokenry.lab.beds.vqa.acceptance import acceptance_page, measure
from tokenry.lab.beds.vqa.bed import WEIGHTS, load_vqa

PAGE = Path(__file__).resolve().parent.parent / "docs" / "testbeds.md"
PLACE = re.compile(r"(<!-- acceptance -->\n).*?(\n<!-- end of acceptance -->)", re.S)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    parser.add_argument("--items", type=int, default=800)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    bed = load_vqa(options.device, folder=options.folder)
    record = measure(bed, items=options.items, progress=lambda message, share: print(f"{share:.0%} {message}", flush=True))
    (options.folder / "acceptance.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    table = acceptance_page(record)
    print(table)
    if options.folder == WEIGHTS:
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(PLACE.sub(lambda found: found[1] + table + found[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
