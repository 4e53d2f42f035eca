"""What real clients do after the first try, where one example says it; what every method must keep is in its contract."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

from tokenry.errors import UnsupportedModelError
from tokenry.hosts.cache import TrackedLayer
from tokenry.hosts.release import CHUNKS_KEEP_PICTURES, as_argument, cache_of
from tokenry.pruning import D2O, IDPruner, ToDRE, ZOOPrune
from tokenry.pruning.baselines import DivPrune, FastV, TopK, UniformGrid
from tokenry.pruning.kv_baselines import H2O, SnapKV, StreamingLLM
from tokenry.testing import llava_inputs, qwen_inputs, tiny, tiny_llava, tiny_qwen, tiny_vlm, vlm_inputs

GREEDY = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True, "eos_token_id": None}


def llama(**changes):
    return tiny(
        "llama", **{"vocab_size": 97, "num_hidden_layers": 4, "eos_token_id": None, "initializer_range": 0.3, **changes}
    )


def prompt(length=48, rows=1, seed=3):
    return torch.randint(2, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_hand_loop_on_three_dimensional_positions_goes_on_where_the_picture_ended():
    model, inputs = tiny_qwen(), qwen_inputs()
    seen = []
    model.model.language_model.register_forward_pre_hook(lambda m, a, k: seen.append(k["position_ids"]), with_kwargs=True)
    plain = model(**inputs)
    model(input_ids=torch.tensor([[7]]), **as_argument(cache_of(plain)))
    with UniformGrid(0.25).attach(model):
        cut = model(**inputs)
        model(input_ids=torch.tensor([[7]]), **as_argument(cache_of(cut)))
    assert torch.equal(seen[1][-3:], seen[3][-3:])  # the rotary positions; the text row counts slots


@torch.no_grad()
def test_a_new_picture_in_a_later_turn_is_pruned_too():
    model, one, two = tiny_llava(), llava_inputs((1,)), llava_inputs((2,))
    pixels = two["pixel_values"]
    with DivPrune(0.25).attach(model) as trace:
        whole = model(**two).logits[:, -1]
        first = model(**{**one, "pixel_values": pixels[:1]})
        rest = two["input_ids"][:, one["input_ids"].shape[1] :]
        assert torch.equal(two["input_ids"][:, : one["input_ids"].shape[1]], one["input_ids"])
        later = model(input_ids=rest, pixel_values=pixels[1:], **as_argument(cache_of(first)))
    torch.testing.assert_close(later.logits[:, -1], whole, atol=1e-4, rtol=1e-4)
    assert [entry.indices.tolist() for entry in trace.kept[:2]] == [entry.indices.tolist() for entry in trace.kept[2:]]
    assert cache_of(later).get_seq_length() == two["input_ids"].shape[1]


@pytest.mark.skipif(not CHUNKS_KEEP_PICTURES, reason="this release of transformers loses the pictures, and chunks are refused")
@torch.no_grad()
def test_a_prompt_with_a_picture_in_chunks_is_pruned_like_the_whole_prompt():
    for build, make in ((tiny_llava, lambda: llava_inputs((1, 2))), (tiny_qwen, qwen_inputs)):
        model, inputs = build(), make()
        with IDPruner(0.25).attach(model) as trace:
            whole = model.generate(**inputs, **GREEDY, max_new_tokens=4)
            chunks = model.generate(**inputs, **GREEDY, max_new_tokens=4, prefill_chunk_size=7)
        torch.testing.assert_close(torch.stack(chunks.logits), torch.stack(whole.logits), atol=1e-4, rtol=1e-4)
        half = len(trace.kept) // 2
        assert [e.indices.tolist() for e in trace.kept[:half]] == [e.indices.tolist() for e in trace.kept[half:]]
    with FastV(0.25).attach(tiny_llava()), pytest.raises(ValueError, match="prefill_chunk_size must be None"):
        model = tiny_llava()
        with FastV(0.25).attach(model):
            model.generate(**llava_inputs(), max_new_tokens=2, prefill_chunk_size=7)


@torch.no_grad()
def test_hidden_states_have_the_columns_of_the_logits():
    inputs = llava_inputs((1, 2))
    for pruner in (TopK(0.25), FastV(0.25), ToDRE(0.25)):
        model = tiny_llava()
        with pruner.attach(model):
            out = model(**inputs, output_hidden_states=True)
        assert {h.shape[1] for h in out.hidden_states} == {out.logits.shape[1]}


@torch.no_grad()
def test_a_prompt_that_is_embedded_already_is_refused_not_ignored():
    model, inputs = tiny_llava(), llava_inputs()
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with TopK(0.25).attach(model):
        with pytest.raises(ValueError, match="inputs_embeds: the visual tokens"):
            model.generate(inputs_embeds=embeds, max_new_tokens=2)
        with pytest.raises(ValueError, match="input_ids must be given"):
            model(inputs_embeds=embeds, pixel_values=inputs["pixel_values"])


@torch.no_grad()
def test_peft_models_in_chunks():
    peft = pytest.importorskip("peft")
    plain = llama()
    wanted = {}
    for method in (H2O(0.5), D2O(0.5, skip_layers=()), SnapKV(0.5, window=8), StreamingLLM(0.5)):
        with method.attach(plain):
            wanted[type(method)] = plain.generate(prompt(), max_new_tokens=5, do_sample=False)
    model = peft.get_peft_model(copy.deepcopy(plain), peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()
    for method in (H2O(0.5), D2O(0.5, skip_layers=()), SnapKV(0.5, window=8), StreamingLLM(0.5)):
        with method.attach(model) as trace:
            found = model.generate(input_ids=prompt(), max_new_tokens=5, do_sample=False, prefill_chunk_size=12)
        assert torch.equal(found, wanted[type(method)])
        assert {entry.total for entry in trace.kept} == {48}
    visual = tiny_llava()
    with TopK(0.25).attach(visual):
        alone = visual(**llava_inputs()).logits
    config = peft.LoraConfig(target_modules=r".*language_model.*q_proj", task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(visual, config).eval()
    with TopK(0.25).attach(wrapped):
        torch.testing.assert_close(wrapped(**llava_inputs()).logits, alone)


@pytest.mark.parametrize("method", [H2O(0.4), TopK(0.25), IDPruner(0.25), FastV(0.25)], ids=lambda m: type(m).__name__)
def test_threads_share_an_attachment(method):
    visual = hasattr(method, "keep")
    model = tiny_llava() if visual else llama()

    def asked(number):
        if visual:
            return llava_inputs((1,), words=(3 + number,), seed=number)
        return {"input_ids": prompt(40 + number, seed=number)}

    def logits(number):
        with torch.no_grad():
            return torch.stack(model.generate(**asked(number), **GREEDY, max_new_tokens=6).logits)

    with method.attach(model):
        alone = [logits(number) for number in range(4)]
        found: dict[int, torch.Tensor | BaseException] = {}

        def work(number):
            try:
                found[number] = logits(number)
            except BaseException as error:
                found[number] = error

        for _ in range(3):
            threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for number, wanted in enumerate(alone):
                assert isinstance(found[number], torch.Tensor), found[number]
                torch.testing.assert_close(found[number], wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_chat_that_starts_with_hi_gets_its_share_of_what_follows():
    model = llama()
    with H2O(0.25).attach(model) as trace:
        cache = cache_of(model(prompt(31), use_cache=True))
        assert cache.layers[0].keys.shape[-2] == 7
        model(prompt(204, seed=5), **as_argument(cache))
        assert cache.layers[0].keys.shape[-2] == 58  # a quarter of 235
        assert trace.facts["cache_bytes"] * 4 <= trace.facts["cache_bytes_full"]
        model(prompt(1), **as_argument(cache))
        assert cache.layers[0].keys.shape[-2] == 58
    with D2O(0.25, skip_layers=(0, -1)).attach(model):
        cache = cache_of(model(prompt(31), use_cache=True))
        model(prompt(204, seed=5), **as_argument(cache))
        assert cache.layers[0].keys.shape[-2] == 235
        assert 58 * 0.8 < sum(layer.keys.shape[-2] for layer in cache.layers[1:3]) / 2 < 58 * 1.3
    with SnapKV(0.25, window=8).attach(model):
        cache = cache_of(model(prompt(31), use_cache=True))
        model(prompt(204, seed=5), **as_argument(cache))
        assert cache.layers[0].keys.shape[-2] == 58
        model(prompt(3), **as_argument(cache))  # too short to vote
        assert cache.layers[0].keys.shape[-2] == 61


@torch.no_grad()
def test_what_was_dropped_cannot_be_cropped_back_and_what_was_added_can():
    model = llama()
    with H2O(10).attach(model):
        cache = cache_of(model(prompt(), use_cache=True))
        with pytest.raises(ValueError, match="tokens_to_remove must be at least 0"):
            cache.crop(-1)
    visual = tiny_llava()
    with TopK(0.25).attach(visual) as trace:
        cache = cache_of(visual(**llava_inputs(), use_cache=True))
        length = cache.get_seq_length()
        token = torch.tensor([[7]])
        once = visual(input_ids=token, **as_argument(cache)).logits
        cache.crop(-1)
        assert cache.get_seq_length() == length
        torch.testing.assert_close(visual(input_ids=token, **as_argument(cache)).logits, once)
        first = int((llava_inputs()["input_ids"][0] == visual.config.image_token_id).nonzero()[0])
        last_dropped = max(set(range(36)) - set(trace.kept[0].indices.tolist()))
        cache.crop(first + last_dropped - length)  # the new token, and what stands behind the last dropped one
        with pytest.raises(ValueError, match="tokens_to_remove must be at least 0"):
            cache.crop(-1)


@torch.no_grad()
def test_an_exact_cache_goes_on_without_the_block():
    model = llama()
    with StreamingLLM(12).attach(model):
        cache = cache_of(model(prompt(), use_cache=True))
        inside = model(prompt(3, seed=9), **as_argument(copy.deepcopy(cache))).logits
    assert isinstance(cache.layers[0], TrackedLayer)
    torch.testing.assert_close(model(prompt(3, seed=9), **as_argument(cache)).logits, inside)
    with D2O(0.3, skip_layers=(0,)).attach(model):
        uneven = cache_of(model(prompt(), use_cache=True))
    with pytest.raises(RuntimeError, match=r"shortened by D2O\(.*continue inside its"):
        model(prompt(3), **as_argument(uneven))


def test_nothing_left_to_compress_is_said():
    types = [*["sliding_attention"] * 5, "full_attention"]
    model = tiny("gemma3", num_hidden_layers=6, layer_types=types, sliding_window=8)
    with pytest.raises(ValueError, match="skip_layers must leave a layer to compress"), D2O(0.2).attach(model):
        pass
    with D2O(0.2, skip_layers=()).attach(model):
        pass


@torch.no_grad()
def test_a_row_of_padding_is_refused_by_name():
    model, ids, mask = llama(), prompt(rows=2), torch.ones(2, 48, dtype=torch.long)
    mask[1] = 0
    with D2O(0.3, skip_layers=()).attach(model), pytest.raises(ValueError, match="at least one token in every row"):
        model(ids, attention_mask=mask, use_cache=True)


def test_a_trainer_hears_what_to_do():
    model = llama()
    with H2O(0.3).attach(model), pytest.raises(ValueError, match=r"leave its `with` block to train"):
        model(prompt(), labels=prompt(), use_cache=False)


@torch.no_grad()
def test_saving_a_model_inside_the_block_saves_the_plain_model(tmp_path):
    model = llama()
    plain = model(prompt()).logits
    with H2O(0.3).attach(model):
        torch.save(model, tmp_path / "model.pt")
        model.save_pretrained(tmp_path / "folder")
    read = torch.load(tmp_path / "model.pt", weights_only=False)
    torch.testing.assert_close(read(prompt()).logits, plain)
    torch.testing.assert_close(type(model).from_pretrained(tmp_path / "folder")(prompt()).logits, plain)
    with H2O(0.3).attach(read):
        pass


@torch.no_grad()
def test_a_decoder_attached_alone_joins_the_pruner_of_the_whole_model():
    model, inputs = tiny_llava(), llava_inputs((1, 1), words=(3, 9))
    runs = []
    for target in (model, model.model.language_model):
        with H2O(1.0).attach(target), UniformGrid(0.5).attach(model):
            runs.append(torch.stack(model.generate(**inputs, **GREEDY, max_new_tokens=4).logits))
    with UniformGrid(0.5).attach(model):
        runs.append(torch.stack(model.generate(**inputs, **GREEDY, max_new_tokens=4).logits))
    torch.testing.assert_close(runs[0], runs[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(runs[1], runs[2], atol=1e-5, rtol=1e-5)


def test_wrappers_that_hide_two_models_are_refused():
    with pytest.raises(UnsupportedModelError, match="2 decoders"), H2O(0.3).attach(nn.ModuleList([llama(), llama()])):
        pass


@torch.no_grad()
def test_rows_with_different_numbers_of_new_pictures_are_the_rows_alone():
    """Padding then stands between real slots; windows and votes must not count it."""
    model, two = tiny_llava(), llava_inputs((2, 2))
    ids, pixels, place = two["input_ids"], two["pixel_values"], model.config.image_token_id
    start = int((ids[0] == place).nonzero()[35]) + 1  # the first turn ends with the first of two pictures
    first = {"input_ids": ids[:, :start], "attention_mask": two["attention_mask"][:, :start], "pixel_values": pixels[[0, 2]]}
    rest = ids[:, start:].clone()
    mask = torch.ones_like(rest)
    rest[0] = rest[0].masked_fill(rest[0] == place, 7)  # the second row alone brings another picture
    for method in (SnapKV(20, window=6), StreamingLLM(20), D2O(20, skip_layers=()), H2O(20)):
        with DivPrune(0.25).attach(model), method.attach(model):
            cache = cache_of(model(**first, use_cache=True))
            full = torch.cat([first["attention_mask"], mask], dim=1)
            later = model(input_ids=rest, attention_mask=full, pixel_values=pixels[3:], **as_argument(cache))
            again = model(input_ids=torch.tensor([[9], [9]]), **as_argument(cache_of(later))).logits
            for row in (0, 1):
                own = cache_of(
                    model(input_ids=first["input_ids"][row][None], pixel_values=pixels[2 * row][None], use_cache=True)
                )
                given = {"pixel_values": pixels[3:]} if row else {}
                out = model(input_ids=rest[row][None], **given, **as_argument(own))
                alone = model(input_ids=torch.tensor([[9]]), **as_argument(cache_of(out))).logits
                torch.testing.assert_close(again[row], alone[0], atol=1e-4, rtol=1e-4, msg=f"{method} row {row}")


def test_a_cache_method_on_the_part_that_does_not_generate_refuses_chunks():
    model = llama()
    with H2O(0.3).attach(model.model):
        with pytest.raises(ValueError, match=r"prefill_chunk_size must be None while H2O .* got 16.*whole model"):
            model.generate(prompt(), prefill_chunk_size=16, max_new_tokens=2)
        assert model.generate(prompt(), max_new_tokens=2).shape == (1, 50)


def test_one_decoder_has_one_cache_method_however_it_is_reached():
    model = llama()
    with H2O(0.3).attach(model), pytest.raises(RuntimeError, match="H2O is already attached"):
        with StreamingLLM(0.3).attach(model.model):
            pass
    with StreamingLLM(0.3).attach(model.model), pytest.raises(RuntimeError, match="StreamingLLM is already attached"):
        with H2O(0.3).attach(model):
            pass
    with H2O(0.3).attach(model):
        pass


@torch.no_grad()
def test_parts_that_are_wrapped_are_found_inside_their_wrappers():
    inputs, wanted = llava_inputs(), {}
    for part in ("", "vision_tower", "language_model", "multi_modal_projector"):
        for pruner in (IDPruner(0.25), FastV(0.25)):
            model = tiny_llava()
            if part:
                setattr(model.model, part, torch.compile(getattr(model.model, part), backend="eager"))
            before = getattr(model.model, part) if part else None
            with pruner.attach(model):
                logits = model(**inputs).logits
            assert before is None or getattr(model.model, part) is before
            name = type(pruner).__name__
            torch.testing.assert_close(logits, wanted.setdefault(name, logits), atol=1e-5, rtol=1e-5, msg=f"{name} {part}")
    inner, pixels = tiny_vlm("idefics3"), vlm_inputs("idefics3")
    with ZOOPrune(0.5, directions=4).attach(inner):
        first = inner(**pixels).logits
    inner.model.connector = torch.compile(inner.model.connector, backend="eager")  # the projector is a part of it
    with ZOOPrune(0.5, directions=4).attach(inner):
        torch.testing.assert_close(inner(**pixels).logits, first, atol=1e-5, rtol=1e-5)
    model = tiny_llava()
    model.model.vision_tower.compile(backend="eager")
    with IDPruner(0.25).attach(model):
        torch.testing.assert_close(model(**inputs).logits, wanted["IDPruner"], atol=1e-5, rtol=1e-5)
    assert model.model.vision_tower._compiled_call_impl is not None
    model = llama()
    with H2O(10).attach(model):
        first = model(prompt(), use_cache=True).logits
    model.model = torch.compile(model.model, backend="eager")
    with H2O(10).attach(model):
        out = model(prompt(), use_cache=True)
    assert cache_of(out).layers[0].keys.shape[-2] == 10
    torch.testing.assert_close(out.logits, first)


def test_parts_inside_peft_are_found():
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"])
    visual, inputs = tiny_llava(), llava_inputs()
    with FastV(0.25).attach(visual):
        wanted = visual.generate(**inputs, max_new_tokens=3, do_sample=False)
    visual.model.language_model = peft.get_peft_model(visual.model.language_model, lora)
    with FastV(0.25).attach(visual) as trace:
        assert torch.equal(visual.generate(**inputs, max_new_tokens=3, do_sample=False), wanted)
    assert trace.kept
    model = llama()
    model.model = peft.get_peft_model(model.model, lora)
    with H2O(10).attach(model) as trace:
        model.generate(prompt(), max_new_tokens=2)
    assert trace.kept


def test_what_cannot_work_is_refused_by_what_the_caller_gave():
    visual, inputs = tiny_llava().train(), llava_inputs()
    visual.gradient_checkpointing_enable()
    with FastV(0.25).attach(visual), pytest.raises(ValueError, match="gradient checkpointing must be off while FastV"):
        visual(**inputs)
    visual.eval()
    with pytest.raises(ValueError, match=r"video_budget must be one of 'method', got 'frame'"):
        with FastV(0.25).attach(visual, video_budget="frame"):
            pass
    with IDPruner(0.25).attach(visual):
        alone = visual.model.language_model
        cache = cache_of(visual(**inputs, use_cache=True))
        assert alone(input_ids=prompt(4) % 60).last_hidden_state.shape[1] == 4
        with pytest.raises(ValueError, match="was shortened by IDPruner; continue with the whole model"):
            alone(input_ids=prompt(1) % 60, **as_argument(cache))
    model = llama()
    with H2O(0.3).attach(model):
        with pytest.raises(ValueError, match="num_beams must be 1 while H2O"):
            model.generate(prompt(), num_beams=2, max_new_tokens=2)
        with pytest.raises(ValueError, match="prompt_lookup_num_tokens must be None while H2O"):
            model.generate(prompt(), prompt_lookup_num_tokens=2, max_new_tokens=2)
        model.train()
        model.gradient_checkpointing_enable()
        with pytest.raises(ValueError, match="got gradient checkpointing, which switches it off"):
            model(prompt(), use_cache=True)
    with pytest.raises(UnsupportedModelError, match="Gemma3ForCausalLM has nothing to compress: every layer uses sliding"):
        with H2O(0.3).attach(tiny("gemma3", layer_types=["sliding_attention"] * 2)):
            pass


def test_a_family_that_is_not_right_is_said_before_anything_runs():
    from tokenry.hosts.vlm import VLMFamily
    from tokenry.hosts.vlm.families import part

    with pytest.raises(ValueError, match="entries must be one of"):
        VLMFamily(entries="foo")
    with pytest.raises(TypeError, match="reader must be a function, got None"):
        VLMFamily(reader=None)
    with pytest.raises(UnsupportedModelError, match=r"LlavaModel has no submodule 'vit'.*it has vision_tower"):
        part(tiny_llava().model, "vit")
