"""EET: the hashing model, joint training of student and teacher, retrieval evaluation."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as tf
from torch.utils.data import DataLoader, TensorDataset

from tests.pruning.draws import KEEP, draw, images
from tokenry import UnsupportedModelError
from tokenry.core.seeding import seeded
from tokenry.hosts.vision import cls_attention
from tokenry.pruning.eet import (
    EET,
    EETHashModel,
    EETLosses,
    EETTrainer,
    EETTrainingConfig,
    eet_training_arguments,
    evaluate_retrieval,
    hash_distillation,
    solve_hash_codes,
)
from tokenry.pruning.vit_baselines import ClsRow
from tokenry.testing import tiny


@seeded(0)
def hash_model(pruner: EET | None = None) -> EETHashModel:
    return EETHashModel(tiny("vit"), 4, 6, pruner=pruner).eval()


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
        EETHashModel(tiny("siglip"), 4, 6)


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
    losses = EETLosses(student, student.twin(), codes, EETTrainingConfig(warmup_steps=1))
    terms = losses(data.tensors[0][:8], data.tensors[1][:8], torch.arange(8))
    assert set(terms) == {"student", "teacher", "class", "hidden_class", "code", "transfer"}
    terms["student"].backward()
    assert all(p.grad is None for p in losses.teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())
    student.zero_grad()
    terms["teacher"].backward()
    assert all(not p.grad.any() for p in student.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in losses.teacher.parameters())


def two_optimizers(config, data, codes):
    """The released code's loop: two backward passes, two optimizers, a shuffling loader seeded for every epoch."""
    student = hash_model(EET(keep=KEEP))
    losses = EETLosses(student, student.twin(), codes, config).train()
    indexed = TensorDataset(*data.tensors, torch.arange(len(codes)))
    make = {
        "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=config.learning_rate, momentum=config.momentum),
        "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay),
    }[config.optimizer]
    optimizers = [make(losses.student), make(losses.teacher)]
    steps, warmup, step = 3 * config.epochs, config.warmup_steps, 0
    for epoch in range(config.epochs):
        order = torch.Generator().manual_seed(config.seed + epoch)
        for batch in DataLoader(indexed, config.batch_size, shuffle=True, generator=order):
            down = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
            terms = losses(*batch)
            for optimizer, name in zip(optimizers, ("student", "teacher"), strict=True):
                optimizer.param_groups[0]["lr"] = config.learning_rate * ((step + 1) / warmup if step < warmup else down)
                optimizer.zero_grad()
                terms[name].backward()
                optimizer.step()
            step += 1
    return losses


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_optimizer_makes_the_updates_of_two(optimizer):
    data, codes = task()
    config = EETTrainingConfig(batch_size=8, epochs=3, warmup_steps=2, hidden_patches=2, optimizer=optimizer, weight_decay=0.0)
    written_out = two_optimizers(config, data, codes)
    student = hash_model(EET(keep=KEEP))
    trainer = EETTrainer(student, student.twin(), codes, config, train_dataset=data)
    trainer.train()
    pairs = list(zip(trainer.model.state_dict().values(), written_out.state_dict().values(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not all(torch.equal(a, b) for a, b in zip(student.parameters(), hash_model().parameters(), strict=True))


def test_every_epoch_has_an_order_of_its_own():
    """The batches of a run follow from the seed and the epoch's number: those of the released code's loader."""
    data, codes = task()
    config = EETTrainingConfig(batch_size=8, epochs=2, warmup_steps=1, hidden_patches=0, transfer_weight=0.0, seed=5)
    seen = []
    trainer = EETTrainer(hash_model(), None, codes, config, train_dataset=data)
    trainer.model.register_forward_hook(lambda module, args, output: seen.append(args[2].tolist()))
    trainer.train()
    assert [len(index) for index in seen] == [8] * 6
    for epoch in (0, 1):
        order = DataLoader(range(24), 8, shuffle=True, generator=torch.Generator().manual_seed(5 + epoch))
        assert seen[3 * epoch : 3 * epoch + 3] == [batch.tolist() for batch in order]
    assert seen[:3] != seen[3:]


def test_two_epochs_move_both_models_and_can_be_resumed(tmp_path):
    data, codes = task()
    config = EETTrainingConfig(batch_size=8, epochs=2, warmup_steps=2, hidden_patches=2)

    def trainer(**options) -> EETTrainer:
        student = hash_model(EET(keep=KEEP))
        arguments = eet_training_arguments(str(tmp_path), config, use_cpu=True)
        return EETTrainer(student, student.twin(), codes, config, train_dataset=data, args=arguments, **options)

    class Stop(tf.TrainerCallback):
        def on_step_end(self, args, state, control, **unused):
            if state.global_step == 4:
                raise KeyboardInterrupt

    student = hash_model(EET(keep=KEEP))
    straight = EETTrainer(student, student.twin(), codes, config, train_dataset=data)
    before = [p.detach().clone() for p in straight.model.parameters()]
    straight.train()
    assert [row["step"] for row in straight.history] == [1, 2, 3, 4, 5, 6]
    assert {"student", "teacher", "class", "hidden_class", "code", "transfer"} <= set(straight.history[0])
    assert all(not torch.equal(a, b) for a, b in zip(before, straight.model.parameters(), strict=True))
    with pytest.raises(KeyboardInterrupt):
        trainer(callbacks=[Stop()]).train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=True)
    assert len(resumed.history) == 6
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_bad_batch_changes_nothing():
    student = hash_model(EET(keep=KEEP))
    data, codes = task()
    config = EETTrainingConfig(transfer_weight=0.0, hidden_patches=0, warmup_steps=0)
    before = [p.detach().clone() for p in student.parameters()]
    student.hash.bias.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="no weight was changed"):
        EETTrainer(student, None, codes, config, train_dataset=data).train()
    assert all(torch.equal(a, b) for a, b in zip(before[:-1], list(student.parameters())[:-1], strict=True))


def test_bad_trainings():
    student = hash_model(EET(keep=KEEP))
    data, codes = task()
    with pytest.raises(ValueError, match="must be 0 without a teacher"):
        EETTrainer(student, None, codes, train_dataset=data)
    with pytest.raises(ValueError, match="pruner=None"):
        EETTrainer(student, student.twin(pruner=EET(keep=KEEP)), codes, train_dataset=data)
    with pytest.raises(ValueError, match="codes must have shape"):
        EETTrainer(student, student.twin(), codes[:, :5], train_dataset=data)
    with pytest.raises(ValueError, match="one item per row of codes"):
        EETTrainer(student, student.twin(), codes[:5], train_dataset=data)
    with pytest.raises(ValueError, match="warmup_steps must be below"):
        EETTrainer(student, student.twin(), codes, EETTrainingConfig(epochs=1), train_dataset=data).train()
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
