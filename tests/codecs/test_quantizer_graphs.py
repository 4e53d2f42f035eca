"""Compiled and ONNX graphs of quantizers at more than one shape. (Exported programs are part of the contract.)"""

import pytest
import torch

from tokenry.codecs import BSQ, FSQ, LFQ, Grouped, ProductVQ, ResidualVQ, SharedHeads, SimVQ, VectorQuantizer
from tokenry.codecs.vq import residual_fsq, residual_lfq

SHAPES = ((2, 9), (3, 14), (4, 33))  # a size of 1 is compiled apart
CODE_FREE = {
    "fsq": lambda: FSQ([8, 5, 5]),
    "fsq symmetric, projected": lambda: FSQ([4, 2, 3], symmetric=True, dim=6),
    "lfq": lambda: LFQ(6, commitment=0.25),
    "lfq groups": lambda: LFQ(12, groups=3, dim=6),
    "bsq": lambda: BSQ(6, groups=2),
    "residual fsq": lambda: residual_fsq([5, 3], 3, dim=6),
    "residual lfq": lambda: residual_lfq(6, 2),
    "blocks": lambda: Grouped([FSQ([5, 3]), SharedHeads(LFQ(2), 2)]),
}
BOOKS = {
    "simvq": lambda: SimVQ(6, 16),
    "vq": lambda: VectorQuantizer(6, 16, code_dim=4),
    "vq cosine gradient": lambda: VectorQuantizer(6, 16, distance="cosine", ema=False, reset_threshold=0.9),
    "rvq": lambda: ResidualVQ(6, 2, 16),
    "pq": lambda: ProductVQ(6, 2, 16),
}


def batches(width):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, width, generator=generator) for shape in SHAPES]


def same(found, expected):
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.codes, expected.codes)
    torch.testing.assert_close(found.loss, expected.loss)


@pytest.mark.parametrize("name", [*CODE_FREE, "simvq"])
def test_one_graph_serves_every_shape(name):
    torch.compiler.reset()
    quantizer = (CODE_FREE | BOOKS)[name]()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(quantizer, fullgraph=True, dynamic=True, backend=backend)
    for x in batches(quantizer.dim):
        same(compiled(x), quantizer(x))
    assert len(graphs) == 1


@pytest.mark.parametrize(("name", "training"), [*((name, True) for name in BOOKS), ("vq", False)])
def test_compiled_books_take_several_shapes(name, training):
    torch.compiler.reset()
    quantizer, plain = BOOKS[name]().train(training), BOOKS[name]().train(training)
    compiled = torch.compile(quantizer, backend="aot_eager")
    for x in batches(quantizer.dim):
        same(compiled(x), plain(x))
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(quantizer.state_dict()[key], value, msg=key)


@pytest.mark.parametrize("name", CODE_FREE)
def test_onnx_graphs_take_every_shape(name, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    quantizer = CODE_FREE[name]().eval()
    sizes = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}}
    first = batches(quantizer.dim)[0]
    with torch.no_grad():
        torch.onnx.export(quantizer, (first,), tmp_path / "graph.onnx", dynamic_shapes=sizes, dynamo=True, verbose=False)
        session = runtime.InferenceSession(str(tmp_path / "graph.onnx"))
        for x in batches(quantizer.dim):
            codes, indices = session.run(None, {"x": x.numpy()})[:2]
            expected = quantizer(x)
            assert torch.equal(torch.from_numpy(indices), expected.indices)
            torch.testing.assert_close(torch.from_numpy(codes), expected.codes)
