"""KV-cache methods in the evaluation harness: the whole cache agrees with its own Hugging Face model, a method with a loop by hand."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from tokenry.errors import AssetMissingError, UnsupportedModelError
from tokenry.hosts.decoder import text_model
from tokenry.hosts.release import as_argument, cache_of
from tokenry.lab.harness import TASKS, TokenryLM, harness_method, score_continuations
from tokenry.pruning import D2O, H2O, FullCache, SnapKV, StreamingLLM
from tokenry.testing import tiny

METHODS = [
    ("h2o", H2O, {"budget": 0.2}),
    ("d2o", D2O, {"budget": 0.2, "skip_layers": (0,)}),
    ("snapkv", SnapKV, {"budget": 9, "window": 4}),
    ("streaming", StreamingLLM, {"budget": 6, "sinks": 2}),
]
ASKED = [
    ("one short line", " and more"),
    ("one short line", " but"),
    ("one short line", " bus"),
    ("a text that is a good deal longer than the other one, so that it is padded", " x"),
    ("a text that is a good deal longer than the other one, so that it is padded", " yes, it is"),
    ("medium sized text ends in a space ", "z"),
    ("", "no context"),
]


@pytest.fixture(scope="module")
def tokenizer():
    """A byte is a token."""
    alphabet = {piece: i + 3 for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_ = Tokenizer(models.BPE({"<pad>": 0, "<s>": 1, "</s>": 2, **alphabet}, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytes_, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def model():
    return tiny("llama", vocab_size=260, num_hidden_layers=3, initializer_range=0.2, eos_token_id=2)


def instances(kind, asked):
    return [Instance(kind, {}, arguments, i) for i, arguments in enumerate(asked)]


def asked_of(lm, asked=ASKED):
    return lm.loglikelihood(instances("loglikelihood", asked), disable_tqdm=True)


def by_hand(model, method, context, continuation):
    """One row, nothing padded: the prompt without its last token, then that token and the continuation.

    What evicts nothing while decoding is run token by token, the others in one pass.
    """
    tail = torch.tensor([[context[-1], *continuation[:-1]]])
    with torch.no_grad(), method.attach(model):
        cache = cache_of(model(torch.tensor([context[:-1]]), use_cache=True))
        parts = [tail] if method.while_decoding else tail.split(1, dim=1)
        odds = torch.cat([model(part, **as_argument(cache)).logits[0].log_softmax(-1) for part in parts])
    best = [int(row.argmax()) for row in odds] == list(continuation)
    return sum(float(row[token]) for row, token in zip(odds, continuation, strict=True)), best


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("max_length", [None, 40])
def test_the_whole_cache_scores_as_the_plain_model(model, tokenizer, batch_size, max_length, caplog):
    options = {"tokenizer": tokenizer, "batch_size": batch_size, "max_length": max_length}
    plain = asked_of(HFLM(model, **options))
    ours = TokenryLM(model, method="full", budget=1.0, **options)
    found_all = asked_of(ours)
    assert ("2 of 7 contexts are longer than max_length=40" in caplog.text) == (max_length == 40)
    for (expected, best), (found, greedy) in zip(plain, found_all, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
        assert greedy == best
    assert ours.cache_share == 1.0


@pytest.mark.parametrize(("name", "kind", "options"), METHODS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_method_scores_as_a_prompt_and_a_pass_by_hand(model, tokenizer, name, kind, options):
    lm = TokenryLM(model, tokenizer=tokenizer, method=name, batch_size=3, **options)
    plain = asked_of(HFLM(model, tokenizer=tokenizer))
    found = asked_of(lm)
    for i, (context, continuation) in enumerate(ASKED[:-1]):
        rows = lm._encode_pair(context, continuation)
        expected, best = by_hand(model, kind(**options), *rows)
        assert found[i][0] == pytest.approx(expected, abs=1e-4)
        assert found[i][1] == best
        assert abs(found[i][0] - plain[i][0]) > 1e-3  # the method is judged, not the prompt before it
    assert found[-1][0] == pytest.approx(plain[-1][0], abs=1e-4)  # one token is never compressed
    assert lm.cache_share < 0.7


def test_the_plain_harness_with_a_method_attached_judges_nothing(model, tokenizer):
    lm = HFLM(model, tokenizer=tokenizer)
    plain = asked_of(lm)
    with H2O(0.2).attach(model):
        attached = asked_of(lm)
    assert [a for a, _ in attached] == pytest.approx([a for a, _ in plain], abs=1e-5)


def test_a_shared_context_is_run_once_and_equal_stems_too(model):
    context, seen = [5, 9, 7, 30, 31, 32, 8, 9], []
    choices = [[4], [6], [8], [7, 5], [7, 6], [1, 2, 3]]
    hook = text_model(model).register_forward_hook(
        lambda module, args, kwargs, out: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        done = score_continuations(model, H2O(4), [context], [choices])
    finally:
        hook.remove()
    assert seen == [(1, 7), (1, 1), (1, 2), (1, 3)]
    for choice, score in zip(choices, done.scores[0], strict=True):
        assert score.log_likelihood == pytest.approx(by_hand(model, H2O(4), context, choice)[0], abs=1e-4)
    assert done.cache_bytes / done.cache_bytes_full == 4 / 7


SLIDING = {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "sliding_window": 8}


@pytest.mark.filterwarnings("ignore:budget")
@pytest.mark.parametrize(
    ("family", "overrides"), [("mistral", {"sliding_window": None}), ("qwen3", {}), ("gemma3", SLIDING), ("phi3", {})]
)
def test_a_padded_batch_scores_as_its_rows_on_every_family(family, overrides):
    model = tiny(family, num_hidden_layers=3, **overrides)
    contexts = [list(range(2, 42)), list(range(50, 20, -1)), [7, 8, 9]]
    choices = [[[3, 4, 5], [6]], [[9, 9]], [[2], [4, 2, 1, 3], [5, 5]]]
    for method in (H2O(0.3), D2O(0.3, skip_layers=(0,))):
        done = score_continuations(model, method, contexts, choices)
        for context, own, scores in zip(contexts, choices, done.scores, strict=True):
            expected = [by_hand(model, method, context, choice)[0] for choice in own]
            assert [score.log_likelihood for score in scores] == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be_scored_is_refused(model):
    with pytest.raises(ValueError, match="at least 2 tokens each, got 1 in context 1"):
        score_continuations(model, H2O(0.5), [[1, 2], [1]], [[[1]], [[1]]])
    with pytest.raises(ValueError, match="of at least 1 token"):
        score_continuations(model, H2O(0.5), [[1, 2]], [[[1], []]])
    with pytest.raises(ValueError, match="got 1 and 2"):
        score_continuations(model, H2O(0.5), [[1, 2]], [[[1]], [[2]]])


def test_generation_is_that_of_the_method(model, tokenizer):
    prompt, count = "some words that are long enough to be cut down", 12
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with H2O(0.2).attach(model):
        out = model.generate(ids, max_new_tokens=count, do_sample=False, pad_token_id=0)
    expected = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    lm = TokenryLM(model, tokenizer=tokenizer, method="h2o", budget=0.2)
    request = instances("generate_until", [(prompt, {"max_gen_toks": count, "do_sample": False, "until": ["\0"]})])
    assert lm.generate_until(request, disable_tqdm=True) == [expected]
    assert 0 < lm.get_model_info()["kv_cache_share"] < 0.25
    assert lm.get_model_info()["kv_method"] == repr(H2O(0.2))


def test_a_text_without_context_is_refused_where_it_would_judge_nothing(model, tokenizer):
    request = instances("loglikelihood_rolling", [("some text",)])
    with pytest.raises(ValueError, match="method='h2o' would compress nothing"):
        TokenryLM(model, tokenizer=tokenizer, method="h2o").loglikelihood_rolling(request)
    whole = TokenryLM(model, tokenizer=tokenizer).loglikelihood_rolling(request, disable_tqdm=True)
    assert whole == pytest.approx(HFLM(model, tokenizer=tokenizer).loglikelihood_rolling(request, disable_tqdm=True), abs=1e-4)


def test_options_are_those_of_the_method_and_their_names_are_checked(model, tokenizer):
    assert harness_method("d2o", budget=64, skip_layers=[0, -1], merge=None) == D2O(64, skip_layers=(0, -1), merge=None)
    assert harness_method("full") == FullCache()
    for name, options, message in (
        ("d20", {}, "there is no KV-cache method 'd20'.*d2o"),
        ("h2o", {"budgte": 0.2}, "budgte is no argument of the model or of h2o.*budget"),
        ("h2o", {"budget": 0.0}, "budget as a ratio must be"),
        ("full", {"budget": 0.2}, "budget of FullCache must be 1.0, got 0.2"),
    ):
        with pytest.raises(ValueError, match=message):
            TokenryLM(model, tokenizer=tokenizer, method=name, **options)
    with pytest.raises(UnsupportedModelError, match="GPT2"):
        TokenryLM(tiny("gpt2", vocab_size=260), tokenizer=tokenizer, method="h2o")


def test_the_task_runs_offline_and_tells_the_method_in_its_result(model, tokenizer):
    lm = TokenryLM(model, tokenizer=tokenizer, method="streaming", budget=0.1, max_length=512)
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    done = simple_evaluate(model=lm, tasks=["tokenry_recall"], task_manager=manager, limit=2, bootstrap_iters=0)
    assert done["n-samples"]["tokenry_recall"] == {"original": 60, "effective": 2}
    assert 0 <= done["results"]["tokenry_recall"]["acc,none"] <= 1
    assert done["config"]["kv_method"] == repr(StreamingLLM(0.1))


def test_every_item_can_be_answered_from_its_scene_alone():
    rows = [json.loads(line) for line in (TASKS / "recall.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 60
    for row in rows:
        scene = row["scene"].split("\n")
        assert scene.count(row["line"]) == 1
        assert scene[scene.index(row["line"]) + 1] == row["choices"][row["answer"]]
        assert len(set(row["choices"]) & set(scene)) == 4


def test_the_items_are_what_the_tool_makes(tmp_path, monkeypatch):
    spec = importlib.util.find_spec("harness_task")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "OUT", tmp_path / "recall.jsonl")
    try:
        tool.main()
    except AssetMissingError as error:
        pytest.skip(str(error))
    assert (tmp_path / "recall.jsonl").read_bytes() == (TASKS / "recall.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("command", "task"), [("lm_eval", str(TASKS / "recall.yaml")), ("tokenry.lab.harness", "tokenry_recall")]
)
def test_the_command_line_knows_the_model(model, tokenizer, tmp_path, command, task):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = f"pretrained={tmp_path / 'model'},method=d2o,budget=0.2,skip_layers=(0,),max_length=512"
    words = ["--model", "tokenry", "--model_args", arguments, "--tasks", task, "--limit", "1", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", command, *words], capture_output=True, text=True, check=False, cwd=tmp_path, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "tokenry_recall" in done.stdout
