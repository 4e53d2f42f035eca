"""Tokenization consistency: phantom edits, the masks that stop them, and in how many ways tokens spell a text.

"Say Anything but This: When Tokenizer Betrays Reasoning in LLMs", Ayoobi, Armstrong and Mukherjee, 2026 (arXiv 2601.14658).

Several id sequences spell one string, so a model that is asked to change a word can write other tokens for the same text and
behave as if it had changed it. The probe marks words of a passage, asks for replacements, finds each target in the *generated
ids* and tells ``unchanged`` (same ids), ``replaced`` (other text) and ``different`` (other ids, same text: a phantom edit)
apart, with eight types of phantom edits and their shapes. `TargetMask` forbids a target in every spelling, `CanonicalOnly`
every spelling but the tokenizer's own. Without a model: the number of encodings of a text, canonicity per token, ids that look
alike; with one: the probability that a word's other encodings hold.

No code was released with the paper. Outcomes, the eight types and the sampling settings follow reports of it; the prompt, the
alignment, the order and exact rules of the types and the mechanics of the mask are this library's (see the page).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokenry.lazy import lazy_exports

_EXPORTS = {
    "ARTEFACTS": "tokenry.text.consistency.edits",
    "OUTCOMES": "tokenry.text.consistency.edits",
    "SHAPES": "tokenry.text.consistency.edits",
    "Edit": "tokenry.text.consistency.edits",
    "classify_edit": "tokenry.text.consistency.edits",
    "classify_edit_ids": "tokenry.text.consistency.edits",
    "EncodingMass": "tokenry.text.consistency.encodings",
    "canonical_tokens": "tokenry.text.consistency.encodings",
    "count_encodings": "tokenry.text.consistency.encodings",
    "encoding_mass": "tokenry.text.consistency.encodings",
    "enumerate_encodings": "tokenry.text.consistency.encodings",
    "first_noncanonical": "tokenry.text.consistency.encodings",
    "is_canonical": "tokenry.text.consistency.encodings",
    "VocabularyTwins": "tokenry.text.consistency.twins",
    "vocabulary_twins": "tokenry.text.consistency.twins",
    "STOP_WORDS": "tokenry.text.consistency.stop_words",
    "MarkedPassage": "tokenry.text.consistency.marking",
    "Target": "tokenry.text.consistency.marking",
    "mark_words": "tokenry.text.consistency.marking",
    "select_passages": "tokenry.text.consistency.marking",
    "align_targets": "tokenry.text.consistency.align",
    "split_words": "tokenry.text.consistency.spans",
    "TokenText": "tokenry.text.consistency.spans",
    "CanonicalOnly": "tokenry.text.consistency.masking",
    "Forbidden": "tokenry.text.consistency.masking",
    "TargetMask": "tokenry.text.consistency.masking",
    "FORMATS": "tokenry.text.consistency.prompts",
    "PromptFormat": "tokenry.text.consistency.prompts",
    "ConsistencyProbe": "tokenry.text.consistency.probe",
    "ProbeResult": "tokenry.text.consistency.results",
    "Rate": "tokenry.text.consistency.results",
    "Trial": "tokenry.text.consistency.results",
    "merge_results": "tokenry.text.consistency.results",
    "wilson": "tokenry.text.consistency.results",
    "judge_output": "tokenry.text.consistency.probe",
}

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
__all__ = sorted(_EXPORTS)


def contract_instances() -> dict[str, Any]:
    """What the contract of probes is checked on, for a model without a chat template."""
    from tokenry.text.consistency.probe import ConsistencyProbe

    probe = ConsistencyProbe(share=0.3, format="few_shot")
    return {name: replace(probe, intervention=name) for name in ("none", "mask", "canonical")}
