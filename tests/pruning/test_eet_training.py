"""EET: the hashing model, joint training of student and teacher, retrieval evaluation."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch.utils.data import TensorDataset

from tests.pruning.tiny_vit import KEEP, SIZES, draw, images, vit
from tokenry import UnsupportedModelError
from tokenry.hosts.vision import cls_attention
from tokenry.pruning.eet import (
    EET,
    EETHashModel,
    EETTrainer,
    EETTrainingConfig,
    evaluate_retrieval,
    hash_distillation,
    solve_hash_codes,
)
from tokenry.pruning.vit_baselines import ClsRow


def hash_model(pruner: EET | None = None) -> EETHashModel:
    torch.manual_seed(0)
    return EETHashModel(vit(), 4, 6, pruner=pruner).eval()


def task(n: int = 24) -> tuple[TensorDataset, torch.Tensor]:
    labels = torch.arange(n) % 4
    return TensorDataset(draw(5, n, 3, 24, 24), labels), solve_hash_codes(torch.eye(4)[labels], 6, mode="class")


def test_hash_head_sits_on_the_logits():
    model = hash_model(EET(keep=KEEP))
    output = model(images())
    assert torch.equal(output.embedding, model.hash(output.logits))
    assert torch.equal(model.encode(images()), torch.where(output.embedding >= 0, 1, -1).to(torch.int8))
    with EET(keep=KEEP).attach(model.twin().backbone):
        pass
    with pytest.raises(ValueError, match="pruner=None"):
        model(images(), importance=True)
    with pytest.raises(UnsupportedModelError, match="no CLS"):
        EETHashModel(tf.SiglipVisionModel(tf.SiglipVisionConfig(**SIZES)), 4, 6)


def test_teacher_importance_is_that_of_the_last_block():
    model = hash_model()
    output = model(images(), importance=True)
    assert output.importance.shape == (3, 36)
    row = cls_attention(model.backbone, images())
    assert bool((output.importance <= row.amax(1) + 1e-6).all())
    assert not output.importance.requires_grad
    assert torch.equal(output.logits, model(images()).logits)


def test_distillation_term():
    u = draw(0, 5, 8)
    assert float(hash_distillation(u, 3 * u)) == pytest.approx(0.0, abs=1e-6)
    assert float(hash_distillation(u, -u)) == pytest.approx(2.0, abs=1e-6)
    teacher = draw(1, 5, 8).requires_grad_()
    hash_distillation(u.requires_grad_(), teacher).backward()
    assert teacher.grad is None


def test_student_loss_gives_the_teacher_no_gradient():
    student = hash_model(EET(keep=KEEP))
    data, codes = task()
    trainer = EETTrainer(student, student.twin(), codes, EETTrainingConfig(warmup_steps=1))
    terms = trainer.losses(data.tensors[0][:8], data.tensors[1][:8], torch.arange(8))
    assert set(terms) == {"student", "teacher", "class", "hidden_class", "code", "transfer"}
    terms["student"].backward()
    assert all(p.grad is None for p in trainer.teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())
    student.zero_grad()
    terms["teacher"].backward()
    assert all(not p.grad.any() for p in student.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in trainer.teacher.parameters())


def test_two_epochs_move_both_models_and_can_be_resumed(tmp_path):
    data, codes = task()
    config = EETTrainingConfig(batch_size=8, epochs=2, warmup_steps=2, hidden_patches=2)

    def trainer() -> EETTrainer:
        student = hash_model(EET(keep=KEEP))
        return EETTrainer(student, student.twin(), codes, config)

    straight = trainer()
    before = [p.detach().clone() for m in (straight.student, straight.teacher) for p in m.parameters()]
    history = straight.fit(data)
    after = [p for m in (straight.student, straight.teacher) for p in m.parameters()]
    assert len(history) == 6
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))

    path = tmp_path / "run" / "state.pt"
    stopped = trainer()

    def stop(step: int, steps: int, values: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.fit(data, checkpoint=path, progress=stop)
    resumed = trainer()
    assert len(resumed.fit(data, checkpoint=path)) == 6
    for a, b in zip(straight.student.parameters(), resumed.student.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    student = hash_model(EET(keep=KEEP))
    other = EETTrainer(student, student.twin(), codes, EETTrainingConfig(epochs=3, warmup_steps=1))
    with pytest.raises(ValueError, match="other settings"):
        other.fit(data, checkpoint=path)


def test_a_bad_batch_changes_nothing():
    student = hash_model(EET(keep=KEEP))
    data, codes = task()
    trainer = EETTrainer(student, None, codes, EETTrainingConfig(transfer_weight=0.0, hidden_patches=0, warmup_steps=0))
    before = [p.detach().clone() for p in student.parameters()]
    student.hash.bias.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="no weight was changed"):
        trainer.train_step(data.tensors[0][:4], data.tensors[1][:4], torch.arange(4))
    assert all(torch.equal(a, b) for a, b in zip(before[:-1], list(student.parameters())[:-1], strict=True))


def test_bad_trainings():
    student = hash_model(EET(keep=KEEP))
    data, codes = task()
    with pytest.raises(ValueError, match="must be 0 without a teacher"):
        EETTrainer(student, None, codes)
    with pytest.raises(ValueError, match="pruner=None"):
        EETTrainer(student, student.twin(pruner=EET(keep=KEEP)), codes)
    with pytest.raises(ValueError, match="codes must have shape"):
        EETTrainer(student, student.twin(), codes[:, :5])
    with pytest.raises(ValueError, match="one item per row of codes"):
        EETTrainer(student, student.twin(), codes[:5]).fit(data)
    with pytest.raises(ValueError, match="warmup_steps must be below"):
        EETTrainer(student, student.twin(), codes, EETTrainingConfig(epochs=1)).fit(data)
    for change in ({"learning_rate": 0.0}, {"epochs": 0}, {"optimizer": "adam"}, {"hidden_patches": -1}):
        with pytest.raises(ValueError, match=next(iter(change))):
            EETTrainingConfig(**change)


def test_save_and_load(tmp_path):
    model = hash_model(EET(keep=KEEP))
    model.save_pretrained(tmp_path)
    loaded = EETHashModel.from_pretrained(tmp_path)
    assert loaded.pruner == model.pruner
    assert torch.equal(loaded(images()).embedding, model(images()).embedding)
    with pytest.raises(TypeError, match="pruner must be EET"):
        model.twin(pruner=ClsRow(keep=KEEP)).save_pretrained(tmp_path)


def test_both_protocols_say_which_one_they_are():
    model = hash_model(EET(keep=KEEP))
    data, codes = task()
    pictures, labels = data.tensors
    encoded = evaluate_retrieval(model, pictures[:5], labels[:5], labels, protocol="encoded", database=pictures)
    target = evaluate_retrieval(model, pictures[:5], labels[:5], labels, protocol="target_codes", target_codes=codes)
    assert "computed by the network" in str(encoded)
    assert "target codes" in str(target)
    assert len(target.per_query) == target.queries == 5
    assert target.mean_average_precision == pytest.approx(sum(target.per_query) / 5)
    with pytest.raises(ValueError, match="needs database and no target_codes"):
        evaluate_retrieval(model, pictures, labels, labels, protocol="encoded", target_codes=codes)
