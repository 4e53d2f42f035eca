"""The 41 systems, a row each; a row is the registration. Loads no torch.

Wings export what their rows name, `compare` offers what they mark, the contract tests run over them, the tables and pages of
the docs are made from them. Systems of other distributions join through the entry-point group ``tokenry.systems``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from tokenry.lazy import suggest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Status = Literal["built", "planned", "external"]
Comparison = Literal["vlm", "cache"]
WINGS = ("pruning", "text", "codecs", "training", "generation", "interpret")
COMPARISONS = ("vlm", "cache")


@dataclass(frozen=True)
class System:
    """One published system.

    Attributes:
        slug: short name used by the command line, the claim, the page and the result files.
        title: title of the paper.
        arxiv: arXiv id.
        wing: the part of the library it belongs to.
        line: what it does, in one line.
        exports: names that the wing offers at its top, the entry point first; empty while planned.
        serves: what it works on, for the tables.
        compare: the comparison that it takes part in; its entry point then offers ``at_budget(keep, seed)``.
        module: where the names come from and ``contract_instances()`` lies; by default ``tokenry.WING.SLUG``.
        claim: module that holds its ``CLAIM``; by default ``tokenry.lab.claims.WING.SLUG``, for systems of other
            distributions their `module`.

    Raises:
        ValueError: an unknown wing or comparison, or a comparison of a system that exports nothing.
    """

    slug: str
    title: str
    arxiv: str
    wing: str
    line: str
    exports: tuple[str, ...] = ()
    serves: str = ""
    compare: Comparison | None = None
    module: str = ""
    claim: str = ""

    def __post_init__(self) -> None:
        if self.wing not in (*WINGS, "external"):
            raise ValueError(f"wing of {self.slug} must be one of {', '.join(WINGS)}, got {self.wing!r}")
        if self.compare is not None and (self.compare not in COMPARISONS or not self.exports):
            allowed = f"one of {', '.join(COMPARISONS)}, for a system that exports something"
            raise ValueError(f"compare of {self.slug} must be {allowed}, got {self.compare!r}")
        if self.exports:
            module = self.module or f"tokenry.{self.wing}.{self.slug}"
            ours = module.startswith("tokenry.")
            object.__setattr__(self, "module", module)
            object.__setattr__(self, "claim", self.claim or (f"tokenry.lab.claims.{self.wing}.{self.slug}" if ours else module))

    @property
    def status(self) -> Status:
        """``built``, ``planned``, or ``external`` for systems of other distributions."""
        if self.module and not self.module.startswith("tokenry."):
            return "external"
        return "built" if self.exports else "planned"

    @property
    def entry(self) -> str:
        """Dotted name of its entry point; empty while planned."""
        return f"{self.module}.{self.exports[0]}" if self.exports else ""

    def load(self) -> Any:
        """Import and return the system's entry point, a class or a function.

        Raises:
            ValueError: the system is planned, not built.
        """
        if not self.exports:
            raise ValueError(f"{self.slug} is {self.status}: there is nothing to load yet")
        return getattr(import_module(self.module), self.exports[0])

    def load_claim(self) -> Any:
        """Import and return the system's `tokenry.lab.evidence.claim.Claim`.

        Raises:
            ValueError: the system is planned, or its module holds no ``CLAIM`` of its slug.
        """
        if not self.exports:
            raise ValueError(f"{self.slug} is {self.status}: it has no claim to run yet")
        claim = getattr(import_module(self.claim), "CLAIM", None)
        if claim is None:
            raise ValueError(f"{self.slug} has no claim to run: {self.claim} must hold a Claim named CLAIM")
        if claim.system != self.slug:
            raise ValueError(f"CLAIM of {self.claim} must be of system {self.slug!r}, got {claim.system!r}")
        return claim


_ROWS = (
    System("idpruner", "IDPruner: Harmonizing Importance and Diversity in Visual Token Pruning for MLLMs", "2602.13315", "pruning",
           "Choose visual tokens by maximal marginal relevance: importance against redundancy, one knob.",
           ("IDPruner", "ImportanceScorer"), "LLaVA, Qwen-VL, InternVL, Gemma 3, Mistral 3, SmolVLM", "vlm"),
    System("zooprune", "ZOO-Prune: Training-Free Token Pruning via Zeroth-Order Gradient Estimation in Vision-Language Models",
           "2509.24837", "pruning", "Choose visual tokens by projector sensitivity times novelty, without training or attention maps.",
           ("ZOOPrune",), "LLaVA, Qwen-VL, InternVL, Gemma 3, Mistral 3, SmolVLM", "vlm"),
    System("todre", "ToDRE: Effective Visual Token Pruning via Token Diversity and Task Relevance", "2505.18757", "pruning",
           "Keep a diverse set of visual tokens, then drop all of them deep in the decoder once the text stops reading.",
           ("ToDRE",), "LLaVA, Qwen-VL, InternVL, Gemma 3, Mistral 3, SmolVLM", "vlm"),
    System("d2o", "D2O: Dynamic Discriminative Operations for Efficient Long-Context Inference of Large Language Models", "2406.13035",
           "pruning", "Compress the KV cache with per-layer budgets and merge what is evicted into what is kept.",
           ("D2O",), "decoders of transformers (22 families tested), also inside vision-language models", "cache"),
    System("glsim", "Global-Local Similarity for Efficient Fine-Grained Image Recognition with Vision Transformers", "2407.12891",
           "pruning", "Find the discriminative patches by their similarity to CLS, crop them, look again.",
           ("GLSim", "GLSimClassifier"), "ViT, DeiT, BEiT, ViTMAE, DINOv2 and v3, CLIP, SigLIP"),
    System("eet", "Rethinking Vision Transformer for Large-Scale Fine-Grained Image Retrieval", "2504.16691", "pruning",
           "Prune ViT patches by content-weighted CLS attention and retrieve images with short binary codes.",
           ("EET",), "ViT, DeiT, BEiT, ViTMAE, DINOv2 and v3, CLIP"),
    System("byteprobs", "Exact Byte-Level Probabilities from Tokenized Language Models for FIM-Tasks and Model Ensembles",
           "2410.09303", "text", "Exact next-byte probabilities from any tokenized language model, and ensembles across vocabularies.",
           ("ByteLM", "ByteEnsemble"), "any causal LM with a lossless tokenizer"),
    System("premium", "Explaining and Mitigating Crosslingual Tokenizer Inequities", "2510.21909", "text",
           "Measure what a tokenizer costs each language and train vocabularies that cost less.",
           ("train_superword",), "fast tokenizers"),
    System("kl3m", "KL3M Tokenizers: Domain-Specific and Character-Level Tokenizers for Legal, Financial, and Preprocessing Applications",
           "2503.17247", "text", "Domain and character-level BPE tokenizers for law, finance and text repair.",
           ("train_domain_tokenizer", "train_char_tokenizer"), "fast tokenizers"),
    System("consistency", "Say Anything but This: When Tokenizer Betrays Reasoning in LLMs", "2601.14658", "text",
           "Probe phantom edits (different ids, same string) and mask them.",
           ("ConsistencyProbe",), "any causal LM with a fast tokenizer"),
    System("wordpool", "Learn Your Tokens: Word-Pooled Tokenization for Language Modeling", "2310.11628", "text",
           "Pool the characters of a word into one vector and decode words character by character.",
           ("WordPoolForCausalLM",), "its own model class"),
    System("lexinvariant", "Lexinvariant Language Models", "2305.16349", "text",
           "Language models that are invariant to the identity of symbols.",
           ("LexinvariantForCausalLM",), "its own model class"),
    System("vq", "Discrete Tokenization for Multimodal LLMs: A Comprehensive Survey", "2507.22920", "codecs",
           "Eight vector quantizers behind one protocol, with health you can see.",
           ("VectorQuantizer", "ResidualVQ", "ProductVQ", "AdditiveVQ", "SimVQ", "FSQ", "LFQ", "BSQ", "ResidualStack",
            "Grouped", "SharedHeads", "QINCo", "Quantizer", "Quantized",
            "CodebookStats", "usage", "CodeTokens", "GraphAnchorTokenizer"),
           "any tensor; the quantizers of EnCodec, Mimi, Chameleon, Emu3, VQModel"),
    System("audiotokens", "Discrete Audio Tokens: More Than a Survey!", "2506.10274", "codecs",
           "One protocol over audio codecs, and a bench of their tokens over speech, music and sound.",
           ("ConvCodec", "AudioCodec", "load_audio_codec"), "EnCodec, DAC, Mimi, a small codec of its own",
           module="tokenry.codecs.audio"),
    System("seed", "Planting a SEED of Vision in Large Language Model", "2307.08041", "codecs",
           "Turn an image into 32 causal, semantic codes that a language model reads left to right."),
    System("karl", "Single-pass Adaptive Image Tokenization for Minimum Program Search", "2507.07995", "codecs",
           "Spend only as many tokens on an image as its complexity needs, in one pass."),
    System("mingtok", "Ming-UniVision: Joint Image Understanding and Generation with a Unified Continuous Tokenizer", "2510.06590",
           "codecs", "One continuous tokenizer for understanding and generating images."),
    System("deltatok", "A Frame is Worth One Token: Efficient Generative World Modeling with Delta Tokens", "2604.04913", "codecs",
           "Encode the change between video frames as one token."),
    System("setrec", "Order-agnostic Identifier for Large Language Model-based Generative Recommendation", "2502.10833", "codecs",
           "Represent an item as an unordered set of tokens for generative recommendation."),
    System("electra", "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators", "2003.10555", "training",
           "Pretrain an encoder to spot replaced tokens."),
    System("w2vbert", "W2v-BERT: Combining Contrastive Learning and Masked Language Modeling for Self-Supervised Speech Pre-Training",
           "2108.06209", "training", "Learn speech tokens by contrast and predict them under a mask, end to end."),
    System("lut", "Learning with Unmasked Tokens Drives Stronger Vision Learners", "2310.13593", "training",
           "Train the visible tokens of a masked autoencoder as well."),
    System("dupmae", "RetroMAE-2: Duplex Masked Auto-Encoder For Pre-Training Retrieval-Oriented Language Models", "2305.02564",
           "training", "Pretrain retrieval encoders whose CLS and ordinary tokens both rebuild the text."),
    System("text2token", "Text2Token: Unsupervised Text Representation Learning with Token Target Prediction", "2510.10224", "training",
           "Turn a decoder into a text embedder by predicting a target token distribution."),
    System("tvm", "Token-Supervised Value Models for Enhancing Mathematical Problem-Solving Capabilities of Large Language Models",
           "2407.12863", "training", "Value models supervised at every token, for search over reasoning."),
    System("cdpo", "Critical Tokens Matter: Token-Level Contrastive Estimation Enhances LLM's Reasoning Capability", "2411.19943",
           "training", "Preference optimisation weighted by how critical each token is."),
    System("gadms", "Gradient-Attention Guided Dual-Masking Synergetic Framework for Robust Text-based Person Retrieval", "2509.09118",
           "training", "Mask noisy and informative text tokens by gradient-weighted attention."),
    System("cfe", "Focus on the Whole Character: Discriminative Character Modeling for Scene Text Recognition", "2407.05562", "training",
           "Character-aware attention and centre losses for scene text recognition."),
    System("tcpa", "Token Coordinated Prompt Attention is Needed for Visual Prompting", "2505.02406", "training",
           "Give each visual token its own prompts."),
    System("vitfiqa", "ViT-FIQA: Assessing Face Image Quality using Vision Transformers", "2508.13957", "training",
           "A quality token that predicts how useful an image is for recognition."),
    System("plm", "Point Linguist Model: Segment Any Object via Bridged Large 3D-Language Model", "2509.07825", "training",
           "Object tokens that bridge point clouds and language models for segmentation."),
    System("lls", "Unsupervised Learning under Latent Label Shift", "2207.13179", "training",
           "Recover classes from domains whose class proportions differ."),
    System("classtokens", "Discriminative Class Tokens for Text-to-Image Diffusion", "2303.17155", "generation",
           "Learn a prompt token from a classifier so that a diffusion model draws the right class."),
    System("conceptexpress", "ConceptExpress: Harnessing Diffusion Models for Single-image Unsupervised Concept Extraction",
           "2407.07077", "generation", "Discover the concepts of one image and learn a token for each."),
    System("xar", "Beyond Next-Token: Next-X Prediction for Autoregressive Visual Generation", "2502.20388", "generation",
           "Autoregressive image generation over cells instead of single tokens, trained with noisy context."),
    System("latentlens", "LatentLens: Revealing Highly Interpretable Visual Tokens in LLMs", "2602.00462", "interpret",
           "Read a hidden state by its nearest contextual word states."),
    System("attentiveness", "Increasing Probability Mass on Answer Choices Does Not Always Improve Accuracy", "2305.14596", "interpret",
           "Measure probability mass on answer choices and what it does to accuracy."),
    System("scansnap", "Scan and Snap: Understanding Training Dynamics and Token Composition in 1-layer Transformer", "2305.16380",
           "interpret", "Watch attention scan and snap onto informative tokens during training."),
    System("alert", "ALERT: Zero-shot LLM Jailbreak Detection via Internal Discrepancy Amplification", "2601.03600", "interpret",
           "Detect jailbreak prompts from amplified internal discrepancies, zero-shot."),
    System("flow", "Follow the Flow: On Information Flow Across Textual Tokens in Text-to-Image Models", "2504.01137", "interpret",
           "Find which prompt tokens carry a word's meaning, and repair leaks."),
    System("concepts", "I Predict Therefore I Am: Is Next Token Prediction Enough to Learn Human-Interpretable Concepts from Data?",
           "2503.08980", "interpret", "Test whether concept directions and probe weights agree, and build structured sparse autoencoders."),
)  # fmt: skip


@lru_cache(maxsize=1)
def _rows() -> dict[str, System]:
    from importlib.metadata import entry_points  # costs more than everything else here

    rows = {row.slug: row for row in _ROWS}
    for point in entry_points(group="tokenry.systems"):
        if point.name in rows:
            raise ValueError(f"entry point {point.name!r} of {point.value} has the slug of a system that exists already")
        rows[point.name] = _external(point)
    return rows


def _external(point: EntryPoint) -> System:
    """The row of an entry point: the one it names (in capitals, so that it is told from a class), else one for its class."""
    if point.attr.isupper():
        try:
            found = point.load()
        except Exception as error:  # a distribution of someone else must not break every command
            return System(
                point.name, point.name, "", "external", f"cannot be loaded ({error}): {point.value}", module=point.module
            )
        if isinstance(found, System):
            return replace(found, slug=point.name, module=found.module or point.module)
    return System(point.name, point.name, "", "external", f"from {point.value}", (point.attr,), module=point.module)


def systems(wing: str | None = None) -> list[System]:
    """Every system, or those of one wing, in catalogue order; ``external`` are those of other distributions.

    Raises:
        ValueError: `wing` is not one of the six (or ``external``).
    """
    if wing is not None and wing not in (*WINGS, "external"):
        raise ValueError(f"wing must be one of {', '.join(WINGS)}, got {wing!r}{suggest(wing, WINGS)}")
    return [row for row in _rows().values() if wing in (None, row.wing) or wing == row.status]


def system(slug: str) -> System:
    """The system of that slug; a typo is answered with the nearest slugs.

    Raises:
        ValueError: there is no such system.
    """
    row = _rows().get(slug)
    if row is None:
        raise ValueError(f"there is no system {slug!r}{suggest(slug, _rows())} (`tokenry list` shows all)")
    return row


def built_wings() -> tuple[str, ...]:
    """The wings that hold a system already."""
    return tuple(wing for wing in WINGS if any(row.wing == wing and row.exports for row in _ROWS))


def wing_exports(wing: str, shared: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """{public name: module} of a wing: its systems' rows, and `shared`, names by module of what belongs to no system."""
    modules = {row.module: row.exports for row in _ROWS if row.wing == wing and row.exports} | dict(shared)
    names = {name: module for module, several in modules.items() for name in several}
    return names | {module.rpartition(".")[2]: module for module in modules}
