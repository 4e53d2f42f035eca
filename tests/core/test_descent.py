"""The one training loop: its schedules, what it refuses, and that a run killed at any step goes on to the same weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tokenry.core.descent import STATE, Plan, descend, kept_log
from tokenry.core.seeding import seeded

X = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
Y = X @ torch.arange(5.0)


def net() -> nn.Module:
    with seeded(0):
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))


def loss_of(model: nn.Module):
    def loss(step: int) -> torch.Tensor:
        rows = torch.randint(0, 64, (8,), generator=torch.Generator().manual_seed(step))
        return F.mse_loss(model(X[rows])[:, 0], Y[rows])

    return loss


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [x.clone() for x in model.state_dict().values()]


PLANS = [
    Plan(steps=12, learning_rate=0.05),
    Plan(steps=12, learning_rate=0.05, warmup=0.0, floor=0.1, clip=None),
    Plan(steps=12, learning_rate=0.05, warmup=3, decay="linear", betas=(0.8, 0.99)),
    Plan(steps=12, learning_rate=0.05, warmup=0.3, decay="one_cycle"),
    Plan(steps=12, learning_rate=0.05, warmup=0.0, decay="none", weight_decay=0.3),
    Plan(steps=12, learning_rate=0.05, decay=lambda step: 1.0 / (step + 1)),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: p.decay if isinstance(p.decay, str) else "own")
def test_equals_the_loop_written_out(plan):
    """Every schedule against torch's own scheduler, stepped by hand."""
    model, twin = net(), net()
    descend(model, loss_of(model), plan)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=plan.learning_rate, betas=plan.betas, weight_decay=plan.weight_decay)
    if plan.decay == "one_cycle":
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.learning_rate, total_steps=12)
    elif plan.decay == "cosine" and not plan.warmup:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12, eta_min=0.005)
    elif plan.decay == "cosine":
        # 5 % of 12 steps is one step of warm-up, at the peak.
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda i: 1.0 if i < 1 else 0.5 * (1 + math.cos(math.pi * (i - 1) / 11))
        )
    elif plan.decay == "linear":
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / 3, (12 - i) / 9))
    else:
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, plan.decay if callable(plan.decay) else lambda i: 1.0)
    twin.train()
    of = loss_of(twin)
    for step in range(12):
        loss = of(step)
        optimizer.zero_grad()
        loss.backward()
        if plan.clip is not None:
            nn.utils.clip_grad_norm_(twin.parameters(), plan.clip)
        optimizer.step()
        schedule.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights(model), weights(twin), strict=True))


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(PLANS[:-1]), st.integers(1, 11), st.integers(1, 5))
def test_killed_at_any_step_it_ends_at_the_same_bits(tmp_path_factory, plan, killed, every):
    folder = tmp_path_factory.mktemp("run")
    whole = net()
    log = descend(whole, loss_of(whole), plan, log_every=1)

    class Killed(BaseException):
        pass

    first = net()
    inner = loss_of(first)

    def dies(step: int) -> torch.Tensor:
        if step == killed:
            raise Killed
        return inner(step)

    with pytest.raises(Killed):
        descend(first, dies, plan, folder=folder, log_every=1, save_every=every)
    assert len(kept_log(folder)) == killed // every * every
    again = net()
    found = descend(again, loss_of(again), plan, folder=folder, log_every=1, save_every=every)
    assert found == log == kept_log(folder)
    assert all(torch.equal(a, b) for a, b in zip(weights(again), weights(whole), strict=True))
    assert descend(again, dies, plan, folder=folder, log_every=1) == log  # a finished run asks for no loss
    with pytest.raises(ValueError, match="other settings"):
        descend(net(), inner, Plan(steps=13, learning_rate=0.05), folder=folder)
    with pytest.raises(ValueError, match="other settings"):
        descend(net(), inner, plan, folder=folder, settings={"seed": 1})


def test_a_step_that_is_not_finite_changes_nothing():
    model = net()
    before = weights(model)[:1]
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"step 0: loss (nan|-?inf).*no weight was updated"):
            descend(model, lambda step, x=bad: model[0].weight.sum() * x, Plan(steps=2, learning_rate=0.1))
    root = nn.Parameter(torch.zeros(1))
    holder = nn.ParameterList([root])
    with pytest.raises(ValueError, match=r"step 0: loss 0.0, gradient norm inf"):
        descend(holder, lambda step: root.sqrt().sum(), Plan(steps=1, learning_rate=0.1, clip=None))
    assert torch.equal(weights(model)[0], before[0])
    assert float(root.detach()) == 0


def test_modes_are_put_back_and_frozen_parameters_left():
    model = net()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    kept = model[0].weight.clone()
    seen = []

    def loss(step: int) -> torch.Tensor:
        seen.append(model[1].training)
        return loss_of(model)(step)

    descend(model, loss, Plan(steps=2, learning_rate=0.1))
    assert seen == [True, True]
    assert model.training
    assert not model[1].training
    assert torch.equal(model[0].weight, kept)


def test_log_watch_progress_and_stop(tmp_path):
    model, told, said = net(), [], []

    def loss(step: int):
        value = loss_of(model)(step)
        return {"loss": value, "twice": 2 * value.detach(), "name": "a"}

    log = descend(
        model, loss, Plan(steps=5, learning_rate=0.1), log_every=2, watch=lambda row: row.update(seen=len(told)) or told.append(row),
        progress=lambda text, done: said.append((text, done)),
    )  # fmt: skip
    assert [row["step"] for row in log] == [2, 4, 5]
    assert log == told
    assert log[0]["twice"] == pytest.approx(2 * log[0]["loss"])
    assert [row["seen"] for row in log] == [0, 1, 2]
    assert [done for _, done in said] == [0.4, 0.8, 1.0]
    assert said[0][0].startswith("step 2, loss ")
    halted = descend(net(), lambda step: loss_of(model)(step), Plan(steps=5, learning_rate=0.1), stop=lambda: True, log_every=1)
    assert len(halted) == 1
    short = net()
    descend(short, loss_of(short), Plan(steps=5, learning_rate=0.1), until=3, folder=tmp_path)
    assert (tmp_path / STATE).exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", -1),
        ("learning_rate", 0.0),
        ("weight_decay", -1.0),
        ("clip", 0.0),
        ("warmup", 1.5),
        ("decay", "step"),
        ("floor", 2),
    ],
)
def test_bad_plans(name, value):
    with pytest.raises(ValueError, match=name):
        Plan(**{"steps": 3, "learning_rate": 0.1, name: value})


def test_a_resume_is_refused_before_anything_is_loaded(tmp_path):
    plan = Plan(steps=4, learning_rate=0.1)
    model = net()
    descend(model, loss_of(model), plan, folder=tmp_path, until=2)
    wide, frozen = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1)), net()
    frozen[0].weight.requires_grad_(False)
    before = weights(wide)
    for other in (wide, frozen):
        with pytest.raises(ValueError, match=r"other settings|another shape"):
            descend(other, loss_of(other), plan, folder=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(weights(wide), before, strict=True))
    with pytest.raises(ValueError, match="other settings"):  # nor does a setting of that name hide the plan
        descend(net(), loss_of(net()), Plan(steps=40, learning_rate=0.1), folder=tmp_path, settings={"plan": "any"})
    (tmp_path / STATE).write_bytes(b"cut off")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        descend(net(), loss_of(net()), plan, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


def test_what_cannot_be_trained_is_said():
    model, plan = net(), Plan(steps=2, learning_rate=0.1)
    with torch.no_grad():
        assert len(descend(model, loss_of(model), plan, log_every=1)) == 2
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        descend(model, loss_of(model), plan)
    with pytest.raises(ValueError, match="needs a gradient"):
        descend(net().requires_grad_(False), loss_of(model), plan)
    with pytest.raises(ValueError, match="must tell a loss"):
        descend(model, lambda step: {"error": 1.0}, plan)
    with pytest.raises(ValueError, match="save_every"):
        descend(model, loss_of(model), plan, save_every=0)
    with pytest.raises(ValueError, match="decay must be a name"):
        descend(model, loss_of(model), PLANS[-1], folder="unused")
    with pytest.raises(ValueError, match="one_cycle"):
        Plan(steps=3, learning_rate=0.1, decay="one_cycle", warmup=1.0)
    with pytest.raises(ValueError, match="one_cycle"):
        Plan(steps=3, learning_rate=0.1, decay="one_cycle").rate(1)


def test_seeding_leaves_every_accelerator_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded other devices"))
    with seeded(3):
        inside = torch.rand(2)
    assert torch.equal(inside, torch.rand(2, generator=torch.Generator().manual_seed(3)))
