"""The visual-question-answering testbed: its data, its shipped weights, its recipe."""

from __future__ import annotations

import json
import random
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.lab.beds.pictures.canvas import COLOUR_NAMES, FAMILY, KINDS, ZONES, CanvasSpec, ask, make_canvases, questions
from tokenry.lab.beds.vqa import bed as vqa
from tokenry.lab.beds.vqa import losses as vqa_losses
from tokenry.lab.beds.vqa.bed import WEIGHTS, WORDS, load_vqa, split_indices, vqa_items

needs_weights = pytest.mark.skipif(not (WEIGHTS / "model.safetensors").exists(), reason="the weights are not in this checkout")


@pytest.fixture(scope="module")
def testbed():
    return load_vqa()


@pytest.fixture(scope="module")
def digits():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (50, 24, 24), generator=generator).to(torch.uint8), torch.arange(50) % 10


def replied(text: str, things: list[tuple[int, str, str]]) -> str:
    """The answer to a question about (digit, colour, zone) triples, worked out from its text alone."""
    words = text.split()
    if words[0] == "sum":
        return str(sum(d for d, c, _ in things if c in (words[2], words[4])))
    if words[0] == "is":
        a, b = (next(d for d, c, _ in things if c == w) for w in (words[1], words[4]))
        return "yes" if a > b else "no"
    if words[0] == "how":
        return str(sum(len(words) == 3 or c == words[-1] for _, c, _ in things))
    found = [thing for thing in things if words[-1] in (str(thing[0]), thing[1], thing[2])]
    assert len(found) == 1
    return str(found[0][0]) if words[1] == "digit" else found[0][1]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_answers_and_relevant_patches_follow_from_the_picture(digits, seed):
    canvases = make_canvases(torch.Generator().manual_seed(seed), *digits, 1)
    spec = canvases.spec
    cells = (canvases.labels[0] >= 0).nonzero().flatten().tolist()
    things = [(int(canvases.labels[0, c]), COLOUR_NAMES[int(canvases.colours[0, c])], ZONES[spec.zone_of(c)]) for c in cells]
    asked = questions(canvases, 0, random.Random(seed), 24)
    assert {q.kind for q in asked} <= set(KINDS)
    for question in asked:
        assert question.answer == replied(question.text, things)
        assert all(word in WORDS for word in [*question.text.split(), question.answer])
        assert len(question.text.split()) < vqa_losses.SLOT
        relevant = spec.patches_of(question.cells)
        assert relevant.sum() == 4 * len(question.cells)
        assert set(question.cells) <= set(cells)
    boxes = canvases.boxes(0)
    assert len(boxes) == len(cells)
    for (top, left, bottom, right), cell in zip(boxes, cells, strict=True):
        inside = torch.zeros(spec.size, spec.size, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        patches = inside.view(spec.grid, spec.patch, spec.grid, spec.patch).all(3).all(1).flatten()
        assert torch.equal(patches, spec.patches_of([cell]))


def test_canvases_repeat_under_a_seed_and_differ_between_seeds(digits):
    one, same, other = (make_canvases(torch.Generator().manual_seed(s), *digits, 4, augment=True) for s in (1, 1, 2))
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.labels, same.labels)
    assert not torch.equal(one.images, other.images)


def test_bad_arguments_are_named(digits):
    canvases = make_canvases(torch.Generator().manual_seed(0), *digits, 1)
    with pytest.raises(ValueError, match="kind='nose'"):
        ask(canvases, 0, random.Random(0), "nose")
    with pytest.raises(ValueError, match="kinds="):
        questions(canvases, 0, random.Random(0), 1, ())
    with pytest.raises(ValueError, match="cell=15"):
        CanvasSpec(cell=15)
    with pytest.raises(ValueError, match="at least 2 digits"):
        CanvasSpec(digits=(1, 3))
    with pytest.raises(ValueError, match="digits"):
        make_canvases(torch.Generator(), digits[0][0], digits[1], 1)
    with pytest.raises(ValueError, match="split"):
        vqa_items("validation")


def test_splits_are_disjoint_and_fixed():
    train, test = split_indices()
    assert len(test) == vqa.HELD_OUT
    assert sorted(torch.cat([train, test]).tolist()) == list(range(10_000))
    assert torch.equal(test, split_indices()[1])


def test_questions_of_one_picture_do_not_see_each_other():
    mask, positions = vqa_losses.block_mask(5, 3, torch.device("cpu"))
    slot = vqa_losses.SLOT
    seen = mask[0, 0] == 0
    assert seen[:5, :5].equal(torch.ones(5, 5).tril().bool())
    assert seen[5 + slot, : 5 + slot].sum() == 5
    assert positions[0, 5 + slot] == 5
    assert positions[0, 5 + 2 * slot - 1] == 5 + slot - 1


@torch.no_grad()
def test_training_form_equals_the_single_question_prompt(digits):
    model = vqa.build_model(3).eval()
    canvases = make_canvases(torch.Generator().manual_seed(3), *digits, 2)
    turns = vqa_losses.make_turns(canvases, random.Random(3), 4, KINDS)
    output = model.model.vision_tower(vqa.pixel_values(canvases.images), output_hidden_states=True)
    logits, targets = vqa_losses.answer_logits(model, output, turns)
    answers = logits[targets != WORDS["<eos>"]].view(2, 4, -1)
    bed = vqa.VQATestbed(model, vqa.build_tokenizer())
    asked = [questions(canvases, i, rng, 4) for rng in [random.Random(3)] for i in range(2)]
    for i in range(2):
        items = [vqa.VQAItem(canvases.images[i], q.text, q.answer, q.kind, torch.zeros(196)) for q in asked[i]]
        prompt = model(**bed.encode(items)).logits[:, -1]
        torch.testing.assert_close(prompt, answers[i], rtol=1e-3, atol=1e-3)


@needs_weights
def test_loads_quickly_and_small():
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 8_000_000
    load_vqa()
    start = time.perf_counter()
    load_vqa()
    assert time.perf_counter() - start < 2.0


@needs_weights
def test_unpruned_accuracy_on_held_out_digits(testbed):
    items = vqa_items(n=100, seed=11)
    assert sum(testbed.accuracy(items)) / len(items) >= 0.9


@needs_weights
def test_no_constant_answer_passes():
    items = vqa_items(n=400, seed=5)
    for family in set(FAMILY.values()):
        answers = [item.answer for item in items if FAMILY[item.kind] == family]
        assert max(answers.count(a) for a in answers) / len(answers) < 0.5


@needs_weights
def test_batch_equals_single_and_repeats(testbed):
    items = vqa_items(n=12, seed=4)
    together = testbed.answer(items)
    assert together == testbed.answer(items, batch_size=5)
    assert together == [testbed.answer([item])[0] for item in items]
    again = vqa_items(n=12, seed=4)
    assert [item.question for item in again] == [item.question for item in items]
    assert all(torch.equal(a.image, b.image) for a, b in zip(items, again, strict=True))
    assert items[0].relevant.shape == (196,)


@needs_weights
def test_the_shape_of_the_model(testbed):
    config = testbed.model.config
    assert config.image_seq_length == 196
    assert config.vision_feature_layer == -2
    assert config.text_config.num_hidden_layers == 8
    ids = testbed.encode(vqa_items(n=3))["input_ids"]
    assert ((ids == config.image_token_index).sum(1) == 196).all()


@needs_weights
def test_provenance_says_how_the_weights_were_made():
    record = json.loads((WEIGHTS / "provenance.json").read_text())
    assert "vqa_train --seed 0" in record["command"]
    assert record["minutes"] <= 40
    rates = record["accuracy_on_held_out_digits"]
    assert rates["all"] >= 0.9
    assert set(KINDS) <= set(rates)


@needs_weights
def test_auto_processor_agrees_with_encode(testbed):
    pytest.importorskip("PIL")
    transformers = pytest.importorskip("transformers")
    try:
        processor = transformers.AutoProcessor.from_pretrained(WEIGHTS, local_files_only=True, backend="pil")
    except ImportError as error:  # this version wants torchvision for its image processors
        pytest.skip(str(error))
    item = vqa_items(n=1)[0]
    batch = processor(images=item.image.numpy(), text=f"<bos><image>{item.question}", return_tensors="pt")
    ours = testbed.encode([item])
    assert torch.equal(batch["input_ids"], ours["input_ids"])
    torch.testing.assert_close(batch["pixel_values"], ours["pixel_values"], rtol=1e-4, atol=1e-4)
