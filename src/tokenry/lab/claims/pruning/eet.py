"""EET: trained with a sixth of the patches, as accurate and as good at retrieval as with all of them.

The paper trains with the pruning in place, and so does the claim, on the digit testbed (36 patches, pruned to 12 after block 1
and to 6 after block 2): hashing models start from one dense classifier and are trained alike, dense, with chance, with content
pruning and with the full method. Queries' codes are ranked against the target codes of the training images. What the classifier
loses when it is pruned without that training is recorded beside it, with CLS row, merging and chance, and decides nothing.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn import functional as F

from tokenry.core.progress import Progress, within
from tokenry.lab.beds.pictures.digit_vit import (
    CLASSES,
    DigitCanvases,
    class_hits,
    digit_canvases,
    fit_hash_head,
    hash_model_on,
    train_digit_vit,
)
from tokenry.lab.evidence.claim import Claim, Competence, Contrast, Measurement, Scale

_KEEP = {1: 12, 2: 6}


class EETClaim(Claim):
    """Accuracy and retrieval at one sixth of the patches, trained that way, against the dense model and chance."""

    system = "eet"
    statement = (
        "Trained with the pruning in place, content-based pruning to a sixth of the patches stays within two points of the "
        "accuracy of the dense model trained alike and beats chance, and the full method retrieves within five points of dense "
        "mAP and better than random pruning"
    )
    metric = "top-1 accuracy per test image; average precision per query (8 bits, target codes, expected over ties)"
    contrasts = (
        Contrast("trained with pruning, within two points of dense", "trained_ctp", "trained_dense", -0.02),
        Contrast("trained with pruning, content importance beats chance", "trained_ctp", "trained_random", 0.0),
        Contrast("full method retrieves within five points of dense", "map_eet", "map_dense", -0.05),
        Contrast("full method retrieves better than random pruning", "map_eet", "map_random", 0.0),
    )
    competence = Competence("dense", 0.85)

    def settings(self, scale: Scale) -> dict[str, Any]:
        """Epochs of the classifier and of the hashing models, and how many canvases are used."""
        return {
            "smoke": {"epochs": 1, "hash_epochs": 1, "train": 192, "test": 64, "bits": 8},
            "small": {"epochs": 24, "hash_epochs": 4, "train": 1300, "test": 497, "bits": 8},
            "paper": {"epochs": 90, "batch": 64, "bits": 16, "learning_rate": 0.01},
        }[scale]

    def measure(self, scale: Scale, seed: int, device: str, progress: Progress) -> Measurement:
        """Train one classifier, then the hashing models from it; prune the classifier in every way beside it."""
        if scale == "paper":
            from tokenry.lab.beds.pictures.birds import eet_measurement

            return eet_measurement("facebook/deit-small-patch16-224", self.settings(scale), seed, device, progress)
        settings = self.settings(scale)
        train, test = digit_canvases(seed)
        train, test = train.first(settings["train"]).to(device), test.first(settings["test"]).to(device)
        model = train_digit_vit(
            seed,
            epochs=settings["epochs"],
            limit=settings["train"],
            device=device,
            progress=within(progress, 0.0, 0.5, "classifier"),
        )
        arms = _pruned_accuracy(model, test, seed)
        facts: dict[str, float | str] = {"patches": 36, "patches_kept": 6, "accuracy_dense": _mean(arms["dense"])}
        for done, name in enumerate(("dense", "random", "ctp", "ctp_dkt", "eet")):
            progress(f"hashing: {name}", 0.5 + 0.1 * done)
            arms[f"trained_{name}"], arms[f"map_{name}"], encoded = _retrieval(name, model, train, test, settings, seed)
            facts[f"map_encoded_{name}"] = encoded
        progress("done", 1.0)
        return Measurement(arms, facts)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _pruned_accuracy(model: torch.nn.Module, test: DigitCanvases, seed: int) -> dict[str, list[float]]:
    """Hits of the dense classifier, whole and pruned in every way, without having been trained for it."""
    from tokenry.pruning.eet import EET
    from tokenry.pruning.vit_baselines import ClsRow, RandomPatches, ToMe

    arms = {"dense": class_hits(model, test).tolist()}
    methods = {
        "ctp": EET(keep=_KEEP),
        "cls_row": ClsRow(keep=_KEEP),
        "tome": ToMe(keep=_KEEP),
        "random": RandomPatches(keep=_KEEP, seed=seed),
    }
    for name, method in methods.items():
        with method.attach(model, record=False):
            arms[name] = class_hits(model, test).tolist()
    return arms


def _retrieval(
    name: str, model: torch.nn.Module, train: DigitCanvases, test: DigitCanvases, settings: dict[str, Any], seed: int
) -> tuple[list[float], list[float], float]:
    """Trained with pruning: hits and average precision per test image, and mAP with the database encoded by the network."""
    from tokenry.pruning.eet import EET, EETTrainer, EETTrainingConfig, evaluate_retrieval, solve_hash_codes
    from tokenry.pruning.vit_baselines import RandomPatches

    pruner = {"dense": None, "random": RandomPatches(keep=_KEEP, seed=seed)}.get(name, EET(keep=_KEEP))
    taught = name in ("ctp_dkt", "eet")
    labels = train.labels.cpu()
    codes = solve_hash_codes(F.one_hot(labels, CLASSES), settings["bits"], seed=seed, mode="class")
    dense = hash_model_on(copy.deepcopy(model), bits=settings["bits"], seed=seed).eval()
    fit_hash_head(dense, train, codes)
    student = dense.twin(pruner=pruner)
    config = EETTrainingConfig(
        learning_rate=1e-3,
        optimizer="adamw",
        epochs=settings["hash_epochs"],
        warmup_steps=2,
        transfer_weight=1.0 if taught else 0.0,
        hidden_patches=2 if name == "eet" else 0,
        seed=seed,
    )
    EETTrainer(student, dense.twin() if taught else None, codes, config, train_dataset=train).train()
    student.eval()
    with torch.no_grad():
        guesses = torch.cat([student(batch).logits.argmax(dim=1) for batch in test.images.split(128)])
    hits = (guesses == test.labels).float().cpu().tolist()
    common: dict[str, Any] = {"query_labels": test.labels.cpu(), "database_labels": labels, "ties": "expected"}
    result = evaluate_retrieval(student, test.images, protocol="target_codes", target_codes=codes, **common)
    encoded = evaluate_retrieval(student, test.images, protocol="encoded", database=train.images, **common)
    return hits, list(result.per_query), encoded.mean_average_precision


CLAIM = EETClaim()
