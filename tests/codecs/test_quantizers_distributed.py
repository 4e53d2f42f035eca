"""Two gloo processes: books stay bit-equal on both, and equal to one process on the joined batch."""

import subprocess
import sys

import pytest
import torch

from tokenry import codecs

MAKERS = {
    "vq": lambda: codecs.VectorQuantizer(6, 8),
    "vq-all": lambda: codecs.VectorQuantizer(6, 8, kmeans_init=True, reset_threshold=1.5, distance="cosine"),
    "rvq": lambda: codecs.ResidualVQ(6, 3, 8, kmeans_init=True, reset_threshold=1.5, quantizer_dropout=0.5),
    "pq": lambda: codecs.ProductVQ(6, 3, 8, reset_threshold=1.0),
}


def batches(step):
    x = torch.randn(41, 6, generator=torch.Generator().manual_seed(step)) * (1 + step)
    return x, (x[:17], x[17:])  # ranks of unequal size


def train(quantizer, take):
    for step in range(5):
        whole, parts = batches(step)
        quantizer(whole if take is None else parts[take])
    return quantizer


def worker(rank, port, out):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    states = {name: train(make(), rank).state_dict() for name, make in MAKERS.items()}
    quantizer = codecs.VectorQuantizer(6, 8)
    x = torch.randn(5, 6)
    if rank == 1:
        x[0, 0] = float("nan")
    message = ""
    try:
        quantizer(x)
    except ValueError as error:
        message = str(error)
    torch.save({"states": states, "message": message, "book": quantizer.codebook}, f"{out}/{rank}.pt")
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
