"""Two gloo processes: books stay bit-equal on both, and equal to one process on the joined batch."""

import subprocess
import sys

import pytest
import torch

from tokenry import codecs

DROPOUT = {"reset_threshold": 1.5, "quantizer_dropout": 0.5}
MAKERS = {
    "vq": lambda: codecs.VectorQuantizer(6, 8),
    "vq-all": lambda: codecs.VectorQuantizer(6, 8, kmeans_init=True, reset_threshold=1.5, distance="cosine"),
    "rvq": lambda: codecs.ResidualVQ(6, 3, 8, kmeans_init=True, dropout_scope="joined", **DROPOUT),
    "rvq-sample": lambda: codecs.ResidualVQ(6, 3, 8, dropout_scope="sample", **DROPOUT),
    "vq-manual": lambda: codecs.VectorQuantizer(6, 8, reset_threshold=1.5, statistics="manual"),
    "rvq-manual": lambda: codecs.ResidualVQ(6, 3, 8, statistics="manual"),
    "pq": lambda: codecs.ProductVQ(6, 3, 8, reset_threshold=1.0),
    "rvq-shared": lambda: codecs.ResidualVQ(6, 3, 8, shared=True, kmeans_init=True, dropout_scope="joined", **DROPOUT),
    "stack": lambda: codecs.ResidualStack(
        [codecs.VectorQuantizer(6, size, kmeans_init=True, reset_threshold=1.5, seed=size) for size in (8, 5)]
        + [codecs.FSQ([5, 3], dim=6)],
        quantizer_dropout=0.5,
    ),
    "grouped": lambda: codecs.Grouped([codecs.ResidualVQ(3, 2, 8, seed=g, reset_threshold=1.5) for g in range(2)]),
    "heads": lambda: codecs.SharedHeads(codecs.VectorQuantizer(2, 8, kmeans_init=True, reset_threshold=1.5), 3),
    "qinco": lambda: codecs.QINCo(6, 2, 8, kmeans_init=True),
}


# What a rank's gradient to the maps, averaged over ranks as DDP does, has to agree with one process on.
LOSSES = {
    "lfq": lambda: codecs.LFQ(4, temperature=0.5, commitment=0.25, dim=6),
    "lfq-groups": lambda: codecs.LFQ(4, temperature=0.5, groups=2, dim=6),
    "bsq": lambda: codecs.BSQ(4, dim=6, commitment=0.25),
    "vq-entropy": lambda: codecs.VectorQuantizer(6, 8, commitment=0.0, entropy_weight=0.3, code_dim=3),
    "rvq-entropy": lambda: codecs.ResidualVQ(
        6, 2, 8, commitment=0.0, entropy_weight=0.3, code_dim=3, quantizer_dropout=0.5, dropout_scope="sample"
    ),
}


def batches(step):
    x = torch.randn(41, 6, generator=torch.Generator().manual_seed(step)) * (1 + step)
    return x, (x[:17], x[17:])  # ranks of unequal size


def train(quantizer, take):
    for step in range(5):
        whole, parts = batches(step)
        batch = whole if take is None else parts[take]
        if getattr(quantizer, "statistics", "forward") == "manual":
            for part in [batch] if take is None else batch.split(10):
                quantizer(part)
            quantizer.update_books()
        else:
            quantizer(batch)
    return quantizer


def loss_and_gradient(quantizer, take, masked):
    """Of one pass over the second batch; the first vectors of the joined batch do not count where masked."""
    whole, parts = batches(1)
    counts = torch.arange(len(whole)) >= 5
    batch, mask = (whole, counts) if take is None else (parts[take], counts.split(17)[take] if take == 0 else counts[17:])
    out = quantizer(batch, mask if masked else None)
    out.loss.backward()
    gradients = [parameter.grad for parameter in quantizer.parameters() if parameter.grad is not None]
    assert gradients
    return [out.loss.detach(), *gradients]


def lengths(seed):
    """How many levels of each sample are in use, step after step."""
    quantizer = codecs.ResidualVQ(6, 4, 8, quantizer_dropout=1.0, seed=seed)
    return torch.cat([(quantizer(torch.randn(3, 6)).indices >= 0).sum(-1) for _ in range(8)])


def worker(rank, port, out):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    states = {name: train(make(), rank).state_dict() for name, make in MAKERS.items()}
    losses = {
        (name, masked): loss_and_gradient(make(), rank, masked) for name, make in LOSSES.items() for masked in (False, True)
    }
    prefixes = lengths(0)
    uneven = codecs.ResidualVQ(6, 3, 8, quantizer_dropout=0.7, entropy_weight=0.1, seed=1)
    for step in range(6):  # ranks that use different numbers of levels do not wait for each other
        x = batches(step)[1][rank].requires_grad_()
        uneven(x).loss.backward()
    stack = codecs.ResidualStack(
        [codecs.VectorQuantizer(6, 8, seed=m) for m in range(3)], quantizer_dropout=0.9, dropout_scope="sample"
    )
    for step in range(6):
        stack(batches(step)[1][rank].view(-1, 1, 6))
    quantizer = codecs.VectorQuantizer(6, 8)
    x = torch.randn(5, 6)
    if rank == 1:
        x[0, 0] = float("nan")
    message = ""
    try:
        quantizer(x)
    except ValueError as error:
        message = str(error)
    found = {"losses": losses, "prefixes": prefixes, "uneven": uneven.codebook, "stack": stack.state_dict()}
    torch.save(found | {"states": states, "message": message, "book": quantizer.codebook}, f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    import socket

    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = "import sys; from tests.codecs.test_quantizers_distributed import worker; worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])"
    started = [subprocess.Popen([sys.executable, "-c", code, str(rank), str(port), str(out)]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", MAKERS)
def test_books_are_equal_on_ranks_and_to_one_process(ranks, name):
    alone = train(MAKERS[name](), None).state_dict()
    for key, value in alone.items():
        first, second = (rank["states"][name][key] for rank in ranks)
        assert torch.equal(first, second), f"{key} differs between ranks"
        torch.testing.assert_close(
            first, value, rtol=1e-6, atol=1e-6, msg=f"{key} differs from one process on the joined batch"
        )


def test_a_bad_batch_on_one_rank_is_refused_on_both(ranks):
    assert "finite" in ranks[0]["message"]
    assert "another rank" in ranks[0]["message"]
    assert "finite" in ranks[1]["message"]
    assert "nan" in ranks[1]["message"]
    for rank in ranks:
        assert torch.equal(rank["book"], codecs.VectorQuantizer(6, 8).codebook)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_entropies_are_those_of_the_joined_batch(ranks, name, masked):
    alone = loss_and_gradient(LOSSES[name](), None, masked)
    first, second = (rank["losses"][name, masked] for rank in ranks)
    torch.testing.assert_close(first[0], second[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(first[0], alone[0])
    for left, right, expected in zip(first[1:], second[1:], alone[1:], strict=True):
        torch.testing.assert_close((left + right) / 2, expected)


def test_ranks_draw_prefixes_of_their_own(ranks):
    first, second = (rank["prefixes"] for rank in ranks)
    assert not torch.equal(first, second)
    assert torch.equal(first, lengths(0)), "the first rank draws as one process does"
    assert torch.equal(ranks[0]["uneven"], ranks[1]["uneven"])
    assert all(torch.equal(value, ranks[1]["stack"][name]) for name, value in ranks[0]["stack"].items())
