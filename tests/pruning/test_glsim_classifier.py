"""GLSim: the two-pass classifier and its training."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.pruning.draws import draw, images
from tokenry import UnsupportedModelError
from tokenry.hosts.vision import final_tokens
from tokenry.pruning.glsim import (
    GLSimClassifier,
    GLSimTrainer,
    glsim_training_arguments,
)
from tokenry.testing import tiny


def classifier(**options) -> GLSimClassifier:
    model = GLSimClassifier(tiny("vit"), 5, **{"top": 4, "dropout": 0.0, **options})
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(3))
    return model


def test_shapes_and_loss():
    model = classifier(width=16, heads=2)
    output = model(images(), torch.tensor([0, 1, 2]), return_crops=True)
    assert output.logits.shape == (3, 5)
    assert output.similarity.shape == (3, 36)
    assert output.boxes.shape == (3, 4)
    assert output.crops.shape == (3, 3, 24, 24)
    assert torch.allclose(output.loss, F.cross_entropy(output.logits, torch.tensor([0, 1, 2])))
    assert model(images()).loss is None
    assert not GLSimClassifier(tiny("vit"), 5)(images()).logits.any()  # the head starts at zero


def test_without_aggregator_it_is_the_plain_classifier():
    with pytest.warns(UserWarning, match="never sees the crop"):
        model = classifier(aggregator=False)
    expected = model.head(final_tokens(model.backbone, images()).prefix[:, 0])
    assert torch.allclose(model(images()).logits, expected, atol=1e-6)


def test_silent_aggregator_is_a_layer_norm():
    model = classifier(width=16)
    for layer in (model.aggregator.attention_out, model.aggregator.mlp[2]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    reduced = model.reducer(final_tokens(model.backbone, images()).prefix[:, 0])
    assert torch.allclose(model(images()).logits, model.head(model.aggregator.norm(reduced)), atol=1e-5)


@pytest.mark.parametrize("head", ["mean", "max"])
def test_full_crop_gives_equal_features(head):
    """With the whole image as crop both slots are equal, so every way to read them agrees."""
    model = classifier(top=36, inclusive=True, head=head).eval()
    first = classifier(top=36, inclusive=True).eval()
    assert torch.allclose(model(images()).logits, first(images()).logits, atol=1e-5)


def test_gradient_reaches_the_encoder_through_the_second_pass_only_by_pixels():
    model = classifier(top=2)
    batch = images(1).requires_grad_()
    model(batch, torch.tensor([1])).loss.backward()
    assert float(model.backbone.layers[0].mlp.fc1.weight.grad.abs().sum()) > 0
    assert not model(batch).similarity.requires_grad


def test_random_anchors_are_the_control():
    model = classifier(anchors="random", top=1).eval()
    boxes = torch.cat([model(images()).boxes for _ in range(8)])
    assert len({tuple(box) for box in boxes.tolist()}) > 5
    again = classifier(anchors="random", top=1).eval()
    assert torch.equal(again(images()).boxes, boxes[:3])


def test_save_and_load(tmp_path):
    model = classifier(width=16, heads=4, metric="l2", head="mean").eval()
    model.save_pretrained(tmp_path)
    loaded = GLSimClassifier.from_pretrained(tmp_path)
    assert torch.equal(loaded(images()).logits, model(images()).logits)
    assert loaded.settings == model.settings
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        GLSimClassifier.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        GLSimClassifier.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", ["deit", "dinov2_with_registers", "clip"])
def test_other_backbones(family, tmp_path):
    model = GLSimClassifier(tiny(family), 3, top=4).eval()
    assert model(images()).boxes.shape == (3, 4)
    model.save_pretrained(tmp_path)
    assert torch.equal(GLSimClassifier.from_pretrained(tmp_path)(images()).similarity, model(images()).similarity)


def test_non_square_images_on_dino():
    model = GLSimClassifier(tiny("dinov2"), 3, top=4)
    assert model(draw(0, 2, 3, 16, 32)).similarity.shape == (2, 32)


def test_bad_classifiers():
    with pytest.raises(UnsupportedModelError, match="no CLS token"):
        GLSimClassifier(tiny("siglip"), 3)
    for options, message in (({"top": 0}, "top"), ({"head": "last"}, "head"), ({"heads": 5}, "heads must divide")):
        with pytest.raises(ValueError, match=message):
            GLSimClassifier(tiny("vit"), 3, **options)
    with pytest.raises(ValueError, match="top must be"):
        GLSimClassifier(tiny("vit"), 3, top=37)(images())


def test_two_epochs_of_training_move_the_parameters(tmp_path):
    model = GLSimClassifier(tiny("vit"), 2, top=4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    data = [{"pixel_values": image, "labels": i % 2} for i, image in enumerate(draw(5, 16, 3, 24, 24))]
    arguments = glsim_training_arguments(
        str(tmp_path), num_train_epochs=2, warmup_steps=2, use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    trainer = GLSimTrainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert trainer.predict(data).predictions.shape == (16, 2)
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == []
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(1e-5)
    with pytest.raises(ValueError, match="warmup_steps must be below"):
        GLSimTrainer(model=model, args=glsim_training_arguments(str(tmp_path), use_cpu=True)).create_scheduler(10)
