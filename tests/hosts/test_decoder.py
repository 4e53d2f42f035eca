"""Every supported family: its queries and keys, and the KV-cache engine around them."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tokenry.core.attention import attention_rows
from tokenry.errors import UnsupportedModelError
from tokenry.hosts import decoder
from tokenry.hosts.attach import attached
from tokenry.hosts.attention import observe
from tokenry.hosts.cache import TrackedLayer, compress_cache
from tokenry.hosts.release import as_argument, cache_of
from tokenry.pruning.kv_baselines import H2O, SnapKV, StreamingLLM
from tokenry.testing import tiny

FULL_AND_SLIDING = {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 8}
PARTIAL = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "mixtral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {},
    "gemma": {},
    "gemma2": {**FULL_AND_SLIDING, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 20},
    "gemma3": {**FULL_AND_SLIDING, "query_pre_attn_scalar": 20},
    "granite": {"attention_multiplier": 0.5, "residual_multiplier": 0.7},
    "starcoder2": {"sliding_window": None},
    "stablelm": {**PARTIAL, "qk_layernorm": True},
    "phi": PARTIAL,
    "phi3": PARTIAL,
    "olmo2": {},
    "olmo3": FULL_AND_SLIDING,
    "smollm3": {"no_rope_layers": [1, 0, 1], "use_sliding_window": False},
    "cohere2": FULL_AND_SLIDING,
    "glm4": {"head_dim": 8},
    "ernie4_5": {"head_dim": 8},
    "hunyuan": {},
    "gpt_oss": FULL_AND_SLIDING,
}


def build(name: str = "llama", attention: str = "sdpa", **changes) -> nn.Module:
    sizes = {"vocab_size": 97, "num_hidden_layers": 3, "eos_token_id": None, "initializer_range": 0.3}
    return tiny(name, **{**sizes, **FAMILIES[name], **changes}, attn_implementation=attention)


def prompt(length: int = 40, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 97, (batch, length), generator=torch.Generator().manual_seed(seed))


def padded(length: int = 40, short: int = 23) -> tuple[torch.Tensor, torch.Tensor]:
    ids = prompt(length, 2)
    ids[0, : length - short] = 0
    return ids, (ids != 0).long()


@torch.no_grad()
def logits_of(model: nn.Module, ids: torch.Tensor, mask=None, steps: int = 4) -> torch.Tensor:
    """Logits of the last prompt token and of `steps` forced decode steps."""
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=steps, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return torch.stack(out.logits, dim=1)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_observed_is_what_eager_attention_computes(name):
    model, ids = build(name, "eager"), prompt(11)
    attentions = decoder.attention_modules(model)
    seen, before = {}, [a.config for a in attentions]
    with torch.no_grad(), attached(model, "test") as hooks:
        for i, attention in enumerate(attentions):
            observe(hooks, attention, lambda observed, i=i: seen.__setitem__(i, observed))
        out = model(ids, use_cache=True, output_attentions=True)
    assert [a.config for a in attentions] == before
    assert len(seen) == len(attentions)
    for i in decoder.full_attention_indices(model):
        observed = seen[i]
        torch.testing.assert_close(observed.key, cache_of(out).layers[i].keys, atol=0, rtol=0)
        rows = attention_rows(observed.query, observed.key, **vars(observed.rule))
        torch.testing.assert_close(rows, out.attentions[i][..., :11], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_compress_alike_under_sdpa_and_eager_and_with_padding(name):
    ids, mask = padded()
    results = {}
    backends = ("eager",) if name in ("gpt_oss", "gemma2") else ("sdpa", "eager")
    for attention in backends:
        model = build(name, attention)
        with H2O(budget=0.4).attach(model) as trace:
            results[attention] = logits_of(model, ids, mask)
            short = logits_of(model, ids[:1, mask[0].bool()])
            long = logits_of(model, ids[1:])
            chunked = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, prefill_chunk_size=9)
            whole = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
        torch.testing.assert_close(results[attention][:1], short, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(results[attention][1:], long, atol=2e-3, rtol=2e-3)
        assert torch.equal(chunked, whole)
        assert {entry.total for entry in trace.kept} == {23, 40}
        assert all(entry.indices.shape == (2, 16 if entry.total == 40 else 9) for entry in trace.kept)
    if len(backends) == 2:
        torch.testing.assert_close(results["sdpa"], results["eager"], atol=2e-3, rtol=2e-3)
    with torch.no_grad():
        plain = logits_of(build(name, "eager"), ids, mask)
    assert not torch.allclose(plain[:, 1:], results["eager"][:, 1:], atol=1e-3)
    torch.testing.assert_close(plain[:, 0], results["eager"][:, 0], atol=2e-3, rtol=2e-3)  # the prompt itself is untouched


@pytest.mark.parametrize("name", ["llava", "onevision", "qwen2_5_vl"])
def test_language_models_inside_vision_language_models(name):
    model = tiny(name, layers=3)
    assert len(decoder.decoder_layers(model)) == 3
    with StreamingLLM(budget=12).attach(model):
        out = model.generate(prompt(30) % 50 + 2, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert [layer.keys.shape[-2] for layer in cache_of(out).layers] == [12, 12, 12]


def test_unsupported_models_are_refused_with_the_list():
    with pytest.raises(UnsupportedModelError, match=r"GPT2LMHeadModel is not supported.*LlamaForCausalLM"):
        decoder.decoder_layers(tiny("gpt2"))
    with pytest.raises(UnsupportedModelError, match="every layer uses sliding-window"):
        decoder.full_attention_indices(build("mistral", sliding_window=8))
    with (
        pytest.raises(UnsupportedModelError, match="1 of 3 layers use sliding-window"),
        H2O(on_sliding="refuse").attach(build("gemma3")),
    ):
        pass
    assert decoder.full_attention_indices(build("gemma3")) == [1, 2]
    with (
        pytest.raises(UnsupportedModelError, match="bidirectional"),
        H2O().attach(build("gemma3", use_bidirectional_attention=True)),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 2}, "beam_search"),
        ({"prompt_lookup_num_tokens": 2}, "assisted_generation"),
        ({"use_cache": False}, "use_cache must be True"),
        ({"cache_implementation": "static"}, "cache_implementation"),
    ],
)
def test_refused_generation_modes(arguments, message):
    model = build()
    with H2O(budget=0.5).attach(model):
        with pytest.raises(ValueError, match=message):
            model.generate(prompt(), max_new_tokens=3, do_sample=False, **arguments)
        assert model.generate(prompt(), max_new_tokens=3, do_sample=True, num_return_sequences=2).shape == (2, 43)
    assert model.generate(prompt(), max_new_tokens=3, do_sample=False, num_beams=2).shape == (1, 43)


def test_refused_caches_and_masks():
    model = build()
    ids, mask = padded()
    with torch.no_grad():
        foreign = cache_of(model(ids, use_cache=True))
        with H2O(budget=0.5).attach(model):
            with pytest.raises(ValueError, match="run the prompt inside the block"):
                model(prompt(1, 2), **as_argument(foreign))
            with pytest.raises(UnsupportedModelError, match="StaticLayer"):
                model(ids, **as_argument(tf.StaticCache(config=model.config, max_cache_len=64)))
            with pytest.raises(ValueError, match="left-padded"):
                model(ids, attention_mask=mask.flip(1), use_cache=True)
            with pytest.raises(ValueError, match="use_cache must be True"):
                model(ids, use_cache=False)
            mine = cache_of(model(ids, use_cache=True))
        for call in (lambda: mine.crop(-1), lambda: mine.crop(3)):
            with pytest.raises(ValueError, match="tokens_to_remove must be"):
                call()
        with SnapKV(budget=0.5).attach(model), pytest.raises(ValueError, match="was compressed by H2O"):
            model(prompt(1, 2), **as_argument(mine))


def test_no_trace_left_also_after_an_exception():
    model = build()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    plain = logits_of(model, prompt())
    with pytest.raises(RuntimeError, match="stop"), H2O(budget=0.3).attach(model):
        logits_of(model, prompt())
        with pytest.raises(RuntimeError, match="H2O is already attached"), H2O().attach(model):
            pass
        raise RuntimeError("stop")
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert torch.equal(logits_of(model, prompt()), plain)


@torch.no_grad()
def test_continuing_a_compressed_cache_keeps_positions():
    model = build()
    ids = prompt(48)
    with H2O(budget=0.4).attach(model):
        cache = cache_of(model(ids[:, :40], use_cache=True))
        assert isinstance(cache.layers[0], TrackedLayer)
        assert cache.get_seq_length() == 40
        assert cache.layers[0].keys.shape[-2] == 16
        bare = model(ids[:, 40:], **as_argument(cache)).logits
        again = cache_of(model(ids[:, :40], use_cache=True))
        told = model(ids[:, 40:], **as_argument(again), position_ids=torch.arange(40, 48)[None]).logits
        assert torch.equal(bare, told)
        third = cache_of(model(ids[:, :40], use_cache=True))
        turn = model.generate(ids, **as_argument(third), max_new_tokens=3, do_sample=False)
        assert turn.shape == (1, 51)
        assert third.get_seq_length() == 50
        assert third.layers[0].keys.shape[-2] == 19  # 0.4 of the 48 tokens at the end of the last turn


@torch.no_grad()
def test_chunks_by_hand_and_reset():
    model = build()
    ids = prompt(50)
    with compress_cache(model, H2O(budget=0.4)) as session:
        whole = cache_of(model(ids, use_cache=True))
        cache = tf.DynamicCache()
        with session.prompt_chunks():
            for part in ids.split(16, dim=1):
                model(part, **as_argument(cache))
                assert cache.layers[1].keys.shape[-2] == cache.get_seq_length()
        torch.testing.assert_close(cache.layers[2].keys, whole.layers[2].keys, atol=1e-4, rtol=1e-4)
        cache.reset()
        assert cache.get_seq_length() == 0
        model(ids, **as_argument(cache))
        torch.testing.assert_close(cache.layers[2].keys, whole.layers[2].keys, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_memory_is_really_freed():
    model = build()
    with H2O(budget=0.25).attach(model) as trace:
        cache = cache_of(model(prompt(200), use_cache=True))
    for layer in cache.layers:
        assert layer.keys.untyped_storage().nbytes() == layer.keys.numel() * layer.keys.element_size()
        assert layer.keys.shape[-2] == 50
    assert trace.facts["cache_bytes"] * 4 == trace.facts["cache_bytes_full"]


class Largest(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@torch.no_grad()
def test_a_32k_prompt_never_builds_a_map():
    length = 32768
    shape = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": length}
    model = build(**shape, hidden_size=8, intermediate_size=8, vocab_size=16)
    ids = torch.randint(2, 16, (1, length))
    with H2O(budget=0.01).attach(model), Largest() as seen:
        model(ids, use_cache=True, logits_to_keep=1)
    assert seen.elements <= 128 * length  # chunk x T; the map would be 256 times that
