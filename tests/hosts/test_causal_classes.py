"""Every causal class of transformers that builds from a small config: paths score the same together, from a cache, and alone."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tokenry.core.seeding import seeded
from tokenry.hosts.paths import PathScorer, WindowFullError
from tokenry.testing import tiny

VOCABULARY = 40
# Fields under all the names that configs have for them; those that a config lacks are left out.
SIZES = {
    "vocab_size": VOCABULARY, "max_position_embeddings": 128, "n_positions": 128, "pad_token_id": 0, "bos_token_id": 0,
    "eos_token_id": 1, "hidden_size": 32, "n_embd": 32, "d_model": 32, "hidden_dim": 32, "word_embed_proj_dim": 32,
    "attention_hidden_size": 32, "intermediate_size": 48, "ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48,
    "moe_intermediate_size": 24, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "decoder_layers": 2,
    "encoder_layers": 2, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "num_experts_per_token": 2, "n_group": 1, "topk_group": 1,
    "state_size": 8, "num_buckets": 4, "is_decoder": True,
}  # fmt: skip
LARGEST = 10_000_000  # parameters; what stays larger has sizes of its own


def build(name: str):
    """A small model of the class with weights that make every token count, or a skip."""
    cls = getattr(transformers, name, None)
    if cls is None:
        pytest.skip("not in this release")
    try:
        default = cls.config_class()
        if getattr(default, "text_config", None) is not None or getattr(default, "vision_config", None) is not None:
            pytest.skip("a model of several parts; its decoder is a class of its own")
        fields = {key: value for key, value in SIZES.items() if hasattr(default, key)}
        for key in ("layer_types", "mlp_layer_types"):
            if kinds := getattr(default, key, None):
                fields[key] = (list(dict.fromkeys(kinds)) * 2)[:2]
        config = cls.config_class(**fields)
        with torch.device("meta"):
            count = sum(weight.numel() for weight in cls(config).parameters())
        if count > LARGEST:
            pytest.skip(f"{count} parameters with these sizes")
        model = cls(config).eval()
    except Exception as error:  # many classes need sizes that fit each other in ways of their own
        pytest.skip(f"does not build from these sizes: {type(error).__name__}")
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=draw))
    return model


def alone(model, path):
    with torch.no_grad():
        return model(torch.tensor([path]), use_cache=False).logits[0, -1, :VOCABULARY].float().log_softmax(-1)


def check(model):
    base = torch.randint(2, VOCABULARY, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    paths = [base[:20], [*base[:9], 5, 6], [*base[:14], 7]]
    scorer = PathScorer(model, VOCABULARY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = [rows[-1] for rows in scorer.run(paths, [1, 1, 1])]
        cut_back = [scorer.run([path], [1])[0][-1] for path in (paths[1], paths[0])]
    for path, found in zip([*paths, paths[1], paths[0]], [*together, *cut_back], strict=True):
        assert torch.allclose(found, alone(model, path), atol=2e-3), len(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted({name[0] if isinstance(name, tuple) else name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()})
)
def test_batch_and_cache_equal_alone(name):
    model = build(name)
    try:
        alone(model, [2, 3, 4])
    except Exception as error:
        pytest.skip(f"does not run at these sizes: {type(error).__name__}")
    check(model)


RECURRENT = {
    "RwkvForCausalLM": {"attention_hidden_size": 32},
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"]},
    "RecurrentGemmaForCausalLM": {"lru_width": 32, "attention_window_size": 16},
}


@pytest.mark.parametrize("name", RECURRENT)
def test_states_that_read_padding_or_cannot_be_cut(name):
    cls = getattr(transformers, name)
    default = cls.config_class()
    taken = {key: value for key, value in SIZES.items() if hasattr(default, key) and key != "layer_types"}
    with seeded(0):
        model = cls(cls.config_class(**taken | RECURRENT[name])).eval()
    check(model)


def test_a_class_that_counts_positions_from_the_row_warns_once():
    model = tiny("gpt2", vocab_size=VOCABULARY)
    plain = model.forward

    def forward(input_ids=None, position_ids=None, logits_to_keep=0, **options):  # positions of its own, as RoBERTa's decoder
        return plain(input_ids=input_ids, logits_to_keep=logits_to_keep, **options)

    model.forward = forward
    scorer = PathScorer(model, VOCABULARY)
    with pytest.warns(UserWarning, match="runs every path alone and whole, which is slow: .* gives other results"):
        scorer.run([[2, 3, 4, 5], [6, 7]], [1, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = scorer.run([[2, 3, 4, 5], [6, 7]], [1, 1])
    assert torch.allclose(rows[1][-1], alone(model, [6, 7]), atol=1e-5)
    with pytest.raises(WindowFullError, match="window of 512 tokens, got 600"):
        scorer.run([[2] * 600], [1])
