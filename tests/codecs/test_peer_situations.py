"""What people do with vector-quantize-pytorch, done here; and its arguments, all of them on the page for those who come from it."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.codecs.books import randn
from tokenry.codecs import (
    FSQ,
    LFQ,
    Grouped,
    ProductVQ,
    QINCo,
    ResidualStack,
    ResidualVQ,
    SharedHeads,
    SimVQ,
    VectorQuantizer,
)
from tokenry.codecs.vq import residual_fsq, residual_lfq

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coming-from-vector-quantize-pytorch.md"

DROPOUT = "quantize_dropout quantize_dropout_cutoff_index quantize_dropout_multiple_of"
ARGUMENTS = {
    "VectorQuantize": "dim codebook_size codebook_dim heads separate_codebook_per_head decay eps freeze_codebook kmeans_init "
    "kmeans_iters sync_kmeans use_cosine_sim layernorm_after_project_in threshold_ema_dead_code channel_last "
    "accept_image_fmap accept_3d_fmap commitment_weight commitment_use_cross_entropy_loss orthogonal_reg_weight "
    "orthogonal_reg_active_codes_only orthogonal_reg_max_codes codebook_diversity_loss_weight "
    "codebook_diversity_temperature stochastic_sample_codes sample_codebook_temp straight_through rotation_trick "
    "directional_reparam directional_reparam_variance sync_codebook sync_affine_param ema_update vq_bridge "
    "manual_ema_update learnable_codebook in_place_codebook_optimizer manual_in_place_optimizer_update affine_param "
    "affine_param_batch_decay affine_param_codebook_decay sync_update_v return_zeros_for_masked_padding "
    "route_gradients_to_input",
    "ResidualVQ": f"dim num_quantizers codebook_size codebook_dim shared_codebook diveq heads {DROPOUT} accept_image_fmap "
    "implicit_neural_codebook mlp_kwargs beam_size eval_beam_size beam_score_quantizer_weights quant_grad_frac "
    "return_zeros_for_masked_padding vq_kwargs",
    "GroupedResidualVQ": "dim groups accept_image_fmap kwargs",
    "FSQ": "levels dim num_codebooks keep_num_codebooks_dim scale allowed_dtypes channel_first projection_has_bias "
    "return_indices force_quantization_f32 preserve_symmetry noise_dropout bound_hard_clamp orthogonal_rotation",
    "ResidualFSQ": f"levels num_quantizers dim is_channel_first {DROPOUT} soft_clamp_input_value bound_hard_clamp kwargs",
    "GroupedResidualFSQ": "dim groups accept_image_fmap kwargs",
    "LFQ": "dim codebook_size entropy_loss_weight commitment_loss_weight diversity_gamma straight_through_activation "
    "num_codebooks keep_num_codebooks_dim codebook_scale frac_per_sample_entropy has_projections projection_has_bias "
    "soft_clamp_input_value cosine_sim_project_in cosine_sim_project_in_scale channel_first "
    "experimental_softplus_entropy_loss entropy_loss_offset spherical force_quantization_f32 orthogonal_rotation",
    "ResidualLFQ": f"dim num_quantizers codebook_size {DROPOUT} soft_clamp_input_value kwargs",
    "GroupedResidualLFQ": "dim groups accept_image_fmap kwargs",
    "SimVQ": "dim codebook_size codebook_transform init_fn channel_first rotation_trick "
    "input_to_quantize_commit_loss_weight commitment_weight frozen_codebook_dim",
    "ResidualSimVQ": f"dim num_quantizers codebook_size heads {DROPOUT} channel_first rotation_trick sim_vq_kwargs",
    "RandomProjectionQuantizer": "dim codebook_size codebook_dim num_codebooks norm kwargs",
    "LatentQuantize": "levels dim commitment_loss_weight quantization_loss_weight num_codebooks codebook_dim "
    "keep_num_codebooks_dim optimize_values in_place_codebook_optimizer",
}
WITHOUT = ("HierarchicalVQ", "FSP", "EvoLFQ", "BinaryMapper")


def chapters():
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_page_says_what_every_argument_is_here(name):
    rows = [line.split("|")[1:3] for line in chapters()[name].splitlines() if line.startswith("|")]
    answered = {word for left, right in rows if right.strip() for word in re.findall(r"`(\w+)`", left)}
    assert set(ARGUMENTS[name].split()) - answered == set()


def test_the_page_names_the_classes_that_have_no_counterpart():
    assert all(f"`{name}`" in chapters()["Not here"] for name in WITHOUT)


def test_arguments_are_those_of_the_peer():
    peer = pytest.importorskip("vector_quantize_pytorch")
    for name, listed in ARGUMENTS.items():
        found = set(inspect.signature(getattr(peer, name).__init__).parameters) - {"self"}
        assert found == set(listed.split()), name
    exported = {name for name, value in vars(peer).items() if inspect.isclass(value) and issubclass(value, nn.Module)}
    assert exported - {"Sequential"} == set(ARGUMENTS) | set(WITHOUT)


def test_options_of_ours_that_the_page_names_exist():
    ours = {c.__name__: c for c in (VectorQuantizer, ResidualVQ, ProductVQ, FSQ, LFQ, SimVQ, QINCo, ResidualStack, Grouped)}
    known = {"count", "mask"}
    for kind in ours.values():
        known |= set(inspect.signature(kind.__init__).parameters)
    known |= set(inspect.get_annotations(__import__("tokenry.codecs.vq.lookup", fromlist=["x"]).LookupOptions))
    named = re.findall(
        r"`(\w+)=[^`]*`", " ".join(line.split("|")[2] for line in PAGE.read_text().splitlines() if line[:3] == "| `")
    )
    assert set(named) - known - {"maps", "labels"} == set()


# -- situations --------------------------------------------------------------------------------------------------------


SEQUENCE = (2, 60, 32)
SITUATIONS = {
    "one book": (lambda: VectorQuantizer(32, 64, decay=0.8, commitment=1.0), ()),
    "residual": (lambda: ResidualVQ(32, 8, 64), (8,)),
    "residual, books by the gradient of the codes": (lambda: ResidualVQ(32, 8, 64, estimator="diveq", ema=False), (8,)),
    "RQ-VAE: one book, drawn codes": (lambda: ResidualVQ(32, 8, 64, shared=True, sample_temperature=0.1), (8,)),
    "groups": (lambda: Grouped([ResidualVQ(16, 8, 64, seed=g) for g in range(2)]), (16,)),
    "k-means start": (lambda: ResidualVQ(32, 4, 64, kmeans_init=True, kmeans_iterations=10), (4,)),
    "rotation trick": (lambda: VectorQuantizer(32, 64, estimator="rotation"), ()),
    "direction with noise": (lambda: VectorQuantizer(32, 64, estimator="diveq", ema=False, noise_variance=5e-3), ()),
    "few dimensions": (lambda: VectorQuantizer(32, 64, code_dim=4), ()),
    "cosine": (lambda: VectorQuantizer(32, 64, distance="cosine"), ()),
    "stale codes": (lambda: VectorQuantizer(32, 64, reset_threshold=2.0), ()),
    "heads, one book": (lambda: SharedHeads(VectorQuantizer(4, 64), 8), (8,)),
    "heads, a book each": (lambda: ProductVQ(32, 8, 64), (8,)),
    "frozen book behind a map": (lambda: SimVQ(32, 64, estimator="rotation"), ()),
    "residual of those": (lambda: ResidualStack([SimVQ(32, 64, seed=m) for m in range(4)], gradient="once"), (4,)),
    "scalars": (lambda: FSQ([8, 5, 5, 5], dim=32), ()),
    "residual scalars": (lambda: residual_fsq([8, 5, 5, 3], 8, dim=32), (8,)),
    "signs": (lambda: LFQ(8, dim=32), ()),
    "several books of signs": (lambda: Grouped([LFQ(8) for _ in range(4)]), (4,)),
    "residual signs": (lambda: residual_lfq(8, 8, dim=32), (8,)),
    "a book of numbers per channel": (lambda: Grouped([VectorQuantizer(1, k, ema=False) for k in (5, 5, 8)], dim=32), (3,)),
    "book sizes per level": (lambda: ResidualStack([VectorQuantizer(32, k) for k in (64, 32, 16)], gradient="once"), (3,)),
    "implicit books": (lambda: QINCo(32, 3, 16), (3,)),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_situation(name):
    make, books = SITUATIONS[name]
    quantizer, x = make(), randn(*SEQUENCE).requires_grad_()
    out = quantizer(x)
    assert out.codes.shape == x.shape
    assert out.indices.shape == (2, 60, *books)
    (out.codes.square().mean() + out.loss).backward()
    assert bool((x.grad != 0).any())
    quantizer.eval()
    out = quantizer(x)
    torch.testing.assert_close(quantizer.decode(out.indices), out.codes.detach())


def test_images_and_videos():
    book = VectorQuantizer(32, 64, ema=False, orthogonality=10.0, channels_first=True)
    out = book(randn(1, 32, 8, 8))
    assert out.codes.shape == (1, 32, 8, 8)
    assert out.indices.shape == (1, 8, 8)
    assert float(out.stats.terms["orthogonality"]) > 0
    heads = SharedHeads(VectorQuantizer(4, 64), 8, channels_first=True)
    assert heads(randn(1, 32, 8, 8)).indices.shape == (1, 8, 8, 8)
    signs = LFQ(16, groups=2, channels_first=True)
    video = randn(1, 16, 3, 4, 4)
    assert signs(video).codes.shape == video.shape
    numbers = Grouped([VectorQuantizer(1, k, ema=False) for k in (4, 8, 16) * 3], channels_first=True)
    assert numbers(randn(2, 9, 5)).indices.shape == (2, 5, 9)


def test_the_temperature_of_signs_scales_their_entropies():
    x = randn(4, 50, 8)
    losses = [float(LFQ(8, temperature=t)(x).stats.terms["sample_entropy"]) for t in (0.01, 1.0)]
    assert losses[0] < losses[1]


def test_every_level_of_a_residual_is_at_hand():
    quantizer, x = ResidualVQ(32, 8, 64).eval(), randn(*SEQUENCE)
    indices = quantizer.encode(x)
    every = quantizer.codes_of(indices)
    assert every.shape == (2, 60, 8, 32)
    torch.testing.assert_close(every.sum(-2), quantizer(x).codes)


def test_random_projections_label_the_same_sound_the_same():
    maps = randn(32, 4 * 6, seed=3)
    labels = ProductVQ(24, 4, 64, distance="cosine").freeze().eval()
    x = randn(*SEQUENCE)
    found = labels.encode(F.layer_norm(x, (32,)) @ maps)
    assert found.shape == (2, 60, 4)
    assert torch.equal(found, labels.encode(F.layer_norm(3 * x + 1, (32,)) @ maps))
    assert len(found[..., 0].unique()) > 10


def test_a_map_of_the_frozen_book_may_be_any_module():
    quantizer, x = SimVQ(32, 64), randn(*SEQUENCE)
    quantizer.transform = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32))
    out = quantizer(x)
    out.loss.backward()
    assert all(p.grad is not None for p in quantizer.transform.parameters())
    torch.testing.assert_close(quantizer.decode(out.indices), out.codes)


def test_a_norm_behind_the_map_and_a_rotation_around_the_grid():
    quantizer = VectorQuantizer(32, 64, code_dim=4)
    quantizer.project_in = nn.Sequential(quantizer.project_in, nn.LayerNorm(4))
    assert quantizer(randn(*SEQUENCE)).codes.shape == SEQUENCE
    grid, turn = FSQ([5, 5, 5, 5]).eval(), nn.Linear(4, 4, bias=False)
    turn.weight.data = torch.linalg.qr(randn(4, 4))[0]
    plain = FSQ([5, 5, 5, 5]).eval()
    back = nn.Linear(4, 4, bias=False)
    back.weight.data = turn.weight.data.t()
    grid.project_in, grid.project_out = turn, back
    x = randn(10, 4)
    torch.testing.assert_close(grid(x).codes, back(plain(turn(x)).codes))


def test_gradient_of_every_level_or_once():
    levels = lambda: [SimVQ(32, 64, seed=m) for m in range(4)]  # noqa: E731
    gradients = {}
    for way in ("each", "once"):
        x = randn(*SEQUENCE).requires_grad_()
        ResidualStack(levels(), gradient=way)(x).codes.sum().backward()
        gradients[way] = x.grad
    torch.testing.assert_close(gradients["each"], 4 * gradients["once"])


def test_a_cutoff_of_dropout_is_a_list_of_lengths():
    quantizer = ResidualVQ(8, 8, 16, quantizer_dropout=1.0, allowed_levels=range(4, 9, 4))
    seen = {int((quantizer(randn(3, 5, 8)).indices >= 0).sum(-1).max()) for _ in range(20)}
    assert seen == {4, 8}
