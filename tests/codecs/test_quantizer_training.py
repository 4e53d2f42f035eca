"""Training steps of every pair of options, gradient accumulation, activation checkpointing."""

import itertools
import random

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tokenry.codecs import AdditiveVQ, ProductVQ, ResidualVQ, VectorQuantizer
from tokenry.testing.quantizers import check_training

LOOK_UP = {
    "distance": ("euclidean", "cosine"),
    "ema": (False, True),
    "smoothing": ("laplace", "clamp"),
    "estimator": ("straight_through", "rotation", "gumbel", "index_backprop", "diveq"),
    "sample_temperature": (0.0, 0.5),
    "kmeans_init": (False, True),
    "reset_threshold": (0.0, 0.9),
    "code_dim": (None, 4),
    "entropy_weight": (0.0, 0.1),
    "entropy_rows": (None, 9),
    "orthogonality": (0.0, 1.0),
    "statistics": ("forward", "manual"),
}
KINDS = {
    "vq": lambda **o: VectorQuantizer(6, 8, **o),
    "vq row": lambda **o: VectorQuantizer(6, 8, emit="row", **o),
    "rvq": lambda **o: ResidualVQ(6, 2, 8, **o),
    "rvq beam": lambda **o: ResidualVQ(6, 2, 8, beam=2, **o),
    "rvq dropout": lambda **o: ResidualVQ(6, 3, 8, quantizer_dropout=0.7, **o),
    "rvq dropout of samples": lambda **o: ResidualVQ(6, 3, 8, quantizer_dropout=0.7, dropout_scope="sample", **o),
    "rvq shared": lambda **o: ResidualVQ(6, 3, 8, shared=True, quantizer_dropout=0.7, **o),
    "pq": lambda **o: ProductVQ(6, 2, 8, **o),
    "opq": lambda **o: ProductVQ(6, 2, 8, rotation=True, **o),
}
ADDITIVE = {
    "encoder": ("greedy", "beam", "icm", "exhaustive"),
    "estimator": ("straight_through", "rotation"),
    "kmeans_init": (False, True),
    "reset_threshold": (0.0, 0.9),
    "code_dim": (None, 4),
    "restarts": (0, 1),
}


def allowed(kind, o):
    soft = o["estimator"] in ("gumbel", "index_backprop")
    if kind == "rvq beam" and (soft or o["distance"] == "cosine"):
        return False
    if kind == "vq row" and (o["ema"] or o["distance"] != "cosine"):
        return False
    if (soft and o["sample_temperature"]) or (o["estimator"] == "diveq" and o["ema"]):
        return False
    return not (o["orthogonality"] and o["ema"])


def covering(factors, valid=lambda row: True):
    """Rows of values in which every pair of values of two factors that some valid row has occurs."""
    names = list(factors)
    rows = [dict(zip(names, row, strict=True)) for row in itertools.product(*factors.values())]
    rows = [row for row in rows if valid(row)]
    random.Random(0).shuffle(rows)
    seen, chosen = set(), []
    for row in rows:
        pairs = set(itertools.combinations(row.items(), 2))
        if pairs - seen:
            seen |= pairs
            chosen.append(row)
    return chosen


def label(row):
    return " ".join(str(value) for value in row.values())


@pytest.mark.parametrize("row", covering({"kind": tuple(KINDS)} | LOOK_UP, lambda row: allowed(row["kind"], row)), ids=label)
def test_every_pair_of_options_trains(row):
    options = dict(row)
    kind = KINDS[options.pop("kind")]
    check_training(lambda: kind(temperature=2.0, **options), batch=2, length=12)


@pytest.mark.parametrize("row", covering(ADDITIVE), ids=label)
def test_every_pair_of_additive_options_trains(row):
    check_training(lambda: AdditiveVQ(6, 2, 8, beam=3, **row), batch=2, length=8)


# -- manual statistics -------------------------------------------------------------------------------------------------

ACCUMULATED = {
    "vq": lambda **o: VectorQuantizer(6, 8, **o),
    "vq reset": lambda **o: VectorQuantizer(6, 8, reset_threshold=1.5, distance="cosine", **o),
    "vq gradient": lambda **o: VectorQuantizer(6, 8, ema=False, start="uniform", reset_threshold=1.5, **o),
    "rvq": lambda **o: ResidualVQ(6, 3, 8, reset_threshold=1.5, **o),
    "rvq shared": lambda **o: ResidualVQ(6, 3, 8, shared=True, reset_threshold=1.5, **o),
    "pq": lambda **o: ProductVQ(6, 2, 8, smoothing="clamp", **o),
}


@pytest.mark.parametrize("name", ACCUMULATED)
def test_accumulated_batches_move_the_books_as_the_joined_one(name):
    joined, parts = ACCUMULATED[name](), ACCUMULATED[name](statistics="manual")
    for step in range(4):
        x = torch.randn(40, 6, generator=torch.Generator().manual_seed(step)) * (1 + step)
        out = joined(x)
        before = {key: value.clone() for key, value in parts.state_dict().items()}
        found = [parts(part) for part in x.split([7, 20, 13])]
        assert torch.equal(torch.cat([part.indices for part in found]), out.indices)
        assert all(torch.equal(value, before[key]) for key, value in parts.state_dict().items()), "forward moves nothing"
        parts.update_books()
        for key, value in joined.state_dict().items():
            torch.testing.assert_close(parts.state_dict()[key], value, msg=key)
    state = {key: value.clone() for key, value in parts.state_dict().items()}
    parts.eval()(x)
    parts.update_books()  # nothing is pending
    assert torch.equal(parts.codebook, state["codebook"])
    with pytest.raises(ValueError, match="statistics='manual'"):
        joined.update_books()


def test_manual_statistics_in_a_loop_with_an_optimizer_hook():
    quantizer = VectorQuantizer(6, 8, statistics="manual", code_dim=3)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: quantizer.update_books())
    book = quantizer.codebook.clone()
    for part in torch.randn(2, 30, 6, generator=torch.Generator().manual_seed(0)):
        quantizer(part).loss.backward()
    assert torch.equal(quantizer.codebook, book)
    optimizer.step()
    assert not torch.equal(quantizer.codebook, book)
    assert quantizer.steps == 1


# -- activation checkpointing ------------------------------------------------------------------------------------------

REPEATED = {
    "vq": lambda **o: VectorQuantizer(6, 8, **o),
    "vq gumbel": lambda **o: VectorQuantizer(6, 8, estimator="gumbel", temperature=5.0, ema=False, **o),
    "vq diveq": lambda **o: VectorQuantizer(6, 8, estimator="diveq", ema=False, **o),
    "vq drawn": lambda **o: VectorQuantizer(6, 8, sample_temperature=0.5, **o),
    "rvq shared": lambda **o: ResidualVQ(6, 3, 8, shared=True, reset_threshold=1.5, **o),
    "rvq": lambda **o: ResidualVQ(6, 3, 8, reset_threshold=1.5, **o),
    "rvq beam": lambda **o: ResidualVQ(6, 3, 8, beam=3, kmeans_init=True, **o),
    "pq": lambda **o: ProductVQ(6, 2, 8, **o),
    **{
        f"rvq dropout {scope}": lambda scope=scope, **o: ResidualVQ(
            6, 3, 8, quantizer_dropout=0.8, dropout_scope=scope, kmeans_init=True, **o
        )
        for scope in ("batch", "joined", "sample")
    },
}


def trained(make, *, repeat=None, steps=4):
    """Losses, gradients of the encoder and books of a small autoencoder over two accumulated batches a step."""
    quantizer = make(statistics="manual")
    weight = torch.eye(6).requires_grad_()

    def run(x):
        out = quantizer((x @ weight).view(4, -1, 6))
        return (out.codes.tanh() * x.view_as(out.codes)).square().mean() + out.loss

    found = []
    for step in range(steps):
        for part in torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(step)) * (1 + step):
            loss = run(part) if repeat is None else checkpoint(run, part.requires_grad_(), use_reentrant=repeat == "reentrant")
            loss.backward()
            found.append(loss.detach())
        found.append(weight.grad.clone())
        quantizer.update_books()
        found += [value.clone() for value in quantizer.state_dict().values()]
    return found


@pytest.mark.parametrize("repeat", ["reentrant", "recorded"])
@pytest.mark.parametrize("name", REPEATED)
def test_checkpointing_with_manual_statistics_is_the_plain_step(name, repeat):
    for a, b in zip(trained(REPEATED[name]), trained(REPEATED[name], repeat=repeat), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", REPEATED)
def test_checkpointing_that_would_count_twice_is_refused(name):
    quantizer = REPEATED[name]()
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = checkpoint(lambda x: (quantizer(x.tanh()).codes.tanh() * x).sum(), x, use_reentrant=False)
    with pytest.raises(RuntimeError, match=r"activation checkpointing repeats .* (VectorQuantizer|ResidualVQ|ProductVQ)"):
        loss.backward()
    assert quantizer.steps == 1
