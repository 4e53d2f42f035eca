"""Names and signatures that code outside this repository calls; they change with a major version or not at all."""

from __future__ import annotations

import importlib
import inspect

import pytest

CALLED = {
    "tokenry.core.selection:resolve_budget": "n keep rounding minimum",
    "tokenry.core.selection:greedy_select": "features k rule importance balance first mask per_round",
    "tokenry.pruning:IDPruner": "keep balance per_round importance_transform",
    "tokenry.pruning:IDPruner.select": "features importance",
    "tokenry.pruning:ZOOPrune": "keep directions step",
    "tokenry.pruning:ZOOPrune.sensitivity": "projector x directions generator method",
    "tokenry.pruning:ZOOPrune.select": "features importance",
    "tokenry.pruning:ToDRE": "keep rule threshold check_depth",
    "tokenry.pruning:ToDRE.select": "features first",
    "tokenry.pruning:ToDRE.attach": "model",
    "tokenry.pruning.todre:relevance": "attention vision text",
    "tokenry.pruning.d2o:layer_ratios": "density heavy recent lower upper",
    "tokenry.pruning.d2o:attention_density": "attention mode",
    "tokenry.pruning.d2o:compress": "keys values scores heavy recent threshold merge new_weight sinks",
    "tokenry.pruning.glsim:global_local_similarity": "tokens metric",
    "tokenry.pruning.glsim:crop_boxes": "similarity top grid patch image_size inclusive metric",
    "tokenry.pruning.glsim:crop_images": "images boxes",
    "tokenry.pruning.eet:content_importance": "cls_attention content",
    "tokenry.pruning.eet:solve_hash_codes": "onehot bits iterations sigma delta init",
    "tokenry.pruning.eet:mean_average_precision": "query_codes query_labels database_codes database_labels top",
    "tokenry.pruning.eet:region_mask": "importance count grid patch transposed",
    "tokenry.text:ByteLM": "model tokenizer valid_only",
    "tokenry.text:ByteLM.start": "prompt",
    "tokenry.text:ByteLM.logprob": "data",
    "tokenry.text:ByteLM.generate": "prompt max_bytes temperature top_p generator",
    "tokenry.text:ByteEnsemble": "members weights mode",
    "tokenry.text.premium:token_premium": "counts reference",
    "tokenry.text.premium:fit_power_law": "vocabulary_sizes counts",
    "tokenry.text.premium:f_test": "x y",
    "tokenry.text.premium:train_superword": "texts vocab_size transition max_words",
    "tokenry.text.kl3m:train_char_tokenizer": "texts vocab_size max_chars min_frequency released pad_to_power_of_two",
    "tokenry.text.kl3m:train_domain_tokenizer": "texts vocab_size",
    "tokenry.text.kl3m:custom_tokens": "citations lowercase",
    "tokenry.text.consistency:count_encodings": "text vocabulary",
    "tokenry.text.consistency:classify_edit": "before after",
    "tokenry.text.wordpool:WordPoolForCausalLM": "config",
    "tokenry.text.lexinvariant:LexinvariantForCausalLM": "config",
    "tokenry.text.lexinvariant:permutation_mixture": "",
    "tokenry.codecs:VectorQuantizer": "dim codebook_size",
    "tokenry.codecs:VectorQuantizer.forward": "x mask",
    "tokenry.codecs:ResidualVQ": "dim levels codebook_size",
    "tokenry.codecs:ProductVQ": "dim groups codebook_size",
    "tokenry.codecs:AdditiveVQ": "dim books codebook_size encoder",
    "tokenry.codecs:FSQ": "levels symmetric",
    "tokenry.codecs:LFQ": "bits scale temperature entropy_weight diversity",
    "tokenry.codecs:BSQ": "bits groups",
    "tokenry.codecs:SimVQ": "dim codebook_size",
    "tokenry.codecs:GraphAnchorTokenizer": "",
    "tokenry.codecs:usage": "indices codebook_size",
    "tokenry.codecs.audio:si_sdr": "reference estimate",
    "tokenry.codecs.audio:si_snr": "reference estimate",
    "tokenry.codecs.audio:sdr": "reference estimate",
    "tokenry.codecs.audio:bitrate": "codec",
}
STATE = ("next_probs", "advance", "covers")
LOOK_UP = ("distance", "ema", "decay", "epsilon", "commitment", "estimator", "kmeans_init", "reset_threshold")


@pytest.mark.parametrize("name", CALLED)
def test_resolves_with_its_arguments(name):
    module, _, path = name.partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    known = inspect.signature(found).parameters
    missing = [argument for argument in CALLED[name].split() if argument not in known]
    assert not missing, f"{name} has lost {missing}"


def test_options_and_state():
    from tokenry.codecs.vq.lookup import LookupOptions
    from tokenry.text.byteprobs.state import ByteState
    from tokenry.text.wordpool import WordPoolConfig

    assert set(LOOK_UP) <= set(LookupOptions.__annotations__)
    assert all(hasattr(ByteState, name) for name in STATE)
    assert hasattr(WordPoolConfig(), "released_quirks")
