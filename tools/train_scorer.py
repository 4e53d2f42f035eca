"""Train IDPruner's importance scorer for the packaged question bed; the bed stays as it is.

python tools/train_scorer.py [--out DIR] [--steps 900] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from tokenry.core.seeding import seeded
from tokenry.lab.beds.vqa.bed import load_vqa
from tokenry.lab.beds.vqa.scorer import SCORER, training_batches
from tokenry.pruning.idpruner import ImportanceScorer, ScorerConfig, ScorerTraining, train_scorer

BATCH = 32


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SCORER)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    bed, started = load_vqa(options.device), time.monotonic()
    width = bed.model.config.get_text_config().hidden_size
    settings = ScorerTraining(steps=options.steps, learning_rate=1e-3)
    with seeded(options.seed):
        scorer = ImportanceScorer(ScorerConfig(int(width))).to(options.device)

    def tell(message: str, share: float) -> None:
        if round(share * options.steps) % 50 == 0:
            print(f"{share:.0%} {message}", flush=True)

    rows = train_scorer(bed.model, scorer, training_batches(bed, options.seed, BATCH), settings, progress=tell)
    scorer.save_pretrained(options.out)
    record = {
        "command": f"python tools/train_scorer.py --steps {options.steps} --seed {options.seed}",
        "settings": asdict(settings),
        "batch": BATCH,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "device": f"{options.device}, {torch.get_num_threads()} threads",
        "history": [{key: round(float(value), 4) for key, value in row.items()} for row in rows[::25]],
    }
    (options.out / "provenance.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
