"""A small visual-question-answering model of our own, with its test questions; everything is in the package.

The model is a `transformers.LlavaForConditionalGeneration`: a CLIP vision tower (6 blocks, LLaVA reads the last but
one, without CLS), the two-layer GELU projector, a Llama decoder (8 layers, 4 heads, 2 key-value heads), 196 visual
tokens. `tools/train_vqa.py` trained it on canvases of handwritten digits and pictures, with visual tokens dropped at random;
the questions here are about canvases of held-out digits on held-out photographs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenry.core.checks import check_choice, check_int
from tokenry.core.seeding import seeded
from tokenry.errors import AssetDamagedError
from tokenry.lab.beds.pictures.canvas import COLOUR_NAMES, TEST_SPEC, THING_NAMES, ZONES, CanvasSpec, make_canvases
from tokenry.lab.beds.pictures.questions import KINDS, ask, questions
from tokenry.lab.beds.pictures.sprites import build_sheet, load_sheet

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

WEIGHTS = Path(__file__).parents[1] / "weights" / "vqa"
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>")
_OTHER_WORDS = (
    "yes", "no", "what", "digit", "color", "is", "in", "where", "number", "there", "of", "above", "larger", "than", "how",
    "many", "digits", "things", "unknown",
)  # fmt: skip
_ALL_WORDS = (*SPECIAL, *(str(digit) for digit in range(10)), *COLOUR_NAMES, *THING_NAMES, *ZONES, *_OTHER_WORDS)
WORDS: dict[str, int] = {word: index for index, word in enumerate(dict.fromkeys(_ALL_WORDS))}
_CHOICES = 4  # pictures drawn per item, so that the kinds are asked equally often
UNKNOWN = "unknown"  # what the model says about objects of which it sees no token
ANSWER_WORDS = 2  # a number is answered digit by digit
PIXEL_MEAN, PIXEL_STD = 0.15, 0.25


@dataclass(frozen=True)
class VQAItem:
    """One test item: image uint8 [112, 112, 3]; relevant bool [196], the patches that the question needs."""

    image: Tensor
    question: str
    answer: str
    kind: str
    relevant: Tensor


@dataclass(frozen=True)
class VQATestbed:
    """The model in evaluation mode and its tokenizer."""

    model: LlavaForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast

    def encode(self, items: Sequence[VQAItem]) -> dict[str, Tensor]:
        """Left-padded batch for `model.generate`: input_ids, attention_mask [B, T], pixel_values [B, 3, 112, 112]."""
        if not items:
            raise ValueError("items is empty; at least one item is needed")
        picture = "<image>" * int(self.model.config.image_seq_length)
        texts = [f"<bos>{picture}{item.question}" for item in items]
        batch: Any = self.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt", return_token_type_ids=False)
        weight = next(self.model.parameters())
        pixels = pixel_values(torch.stack([item.image for item in items])).to(weight.device, weight.dtype)
        ids, mask = batch["input_ids"].to(weight.device), batch["attention_mask"].to(weight.device)
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}

    @torch.no_grad()
    def answer(self, items: Sequence[VQAItem], *, batch_size: int = 32) -> list[str]:
        """The model's answers, a word or a number, through `model.generate`, so that a pruner attached to the model acts."""
        check_int("batch_size", batch_size, minimum=1)
        answers: list[str] = []
        model: Any = self.model
        for start in range(0, len(items), batch_size):
            inputs = self.encode(items[start : start + batch_size])
            output = model.generate(**inputs, max_new_tokens=ANSWER_WORDS, do_sample=False)
            said = output[:, inputs["input_ids"].shape[1] :]
            answers += [text.replace(" ", "") for text in self.tokenizer.batch_decode(said, skip_special_tokens=True)]
        return answers

    def accuracy(self, items: Sequence[VQAItem], *, batch_size: int = 32) -> list[float]:
        """1.0 where the answer is exactly right, else 0.0; one value per item."""
        answers = self.answer(items, batch_size=batch_size)
        return [float(word == item.answer) for word, item in zip(answers, items, strict=True)]


def pixel_values(images: Tensor) -> Tensor:
    """Normalised pictures float32 [B, 3, H, W] from uint8 [B, H, W, 3]."""
    return (images.permute(0, 3, 1, 2).float() / 255 - PIXEL_MEAN) / PIXEL_STD


def load_vqa(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, *, folder: Path | None = None
) -> VQATestbed:
    """The trained testbed from the package (or from the output folder of a training run), without any network."""
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

    folder = folder or WEIGHTS
    if not (folder / "model.safetensors").is_file():
        raise AssetDamagedError(f"{folder} holds no model.safetensors; install tokenry again, or train: {TRAIN_COMMAND}")
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return VQATestbed(model.to(device).eval(), tokenizer)


TEST_SHEET = "test_sheet.safetensors"
TRAIN_COMMAND = "python tools/train_vqa.py --seed 0 --out DIR"


def vqa_items(
    split: str = "test", n: int = 200, seed: int = 0, *, kinds: Sequence[str] = KINDS, spec: CanvasSpec | None = None,
    folder: Path | None = None,
) -> list[VQAItem]:  # fmt: skip
    """N items on n different canvases, the kinds in turn; the test split needs nothing but the package.

    split "test": digits, photographs and a setting of the generator never trained on, shipped with the weights; "train": those
    of training (assets `mnist`, `digits`, `emoji-noto`, `emoji-twemoji`, `photographs`). `spec`: another setting.
    """
    check_choice("split", split, ("test", "train"))
    check_int("n", n, minimum=1)
    test = split == "test"
    sheet = load_sheet((folder or WEIGHTS) / TEST_SHEET) if test else build_sheet(train=True)
    spec = spec or (TEST_SPEC if test else CanvasSpec())
    canvases = make_canvases(torch.Generator().manual_seed(seed), sheet, _CHOICES * n, spec=spec)
    owners = canvases.owners()
    rng = random.Random(seed)
    items: list[VQAItem] = []
    for number in range(n):
        places = range(_CHOICES * number, _CHOICES * (number + 1))
        kind = kinds[number % len(kinds)]
        asked = ((place, ask(canvases, place, rng, kind)) for place in places)
        place, question = next(((place, q) for place, q in asked if q is not None), (places[0], None))
        # where no picture allows the kind (equal digits cannot be compared), the first is asked something else
        question = question or questions(canvases, place, rng, 1, kinds)[0]
        relevant = torch.isin(owners[place], torch.tensor(question.objects))
        items.append(VQAItem(canvases.images[place], question.text, question.answer, question.kind, relevant))
    return items


def build_model(seed: int, spec: CanvasSpec | None = None) -> LlavaForConditionalGeneration:
    """The untrained model (2.5 M parameters)."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    spec = spec or CanvasSpec()
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=spec.size,
        patch_size=spec.patch,
        hidden_act="gelu",
        projection_dim=128,
    )
    text: Any = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.06,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        pad_token_id=WORDS["<pad>"],
        bos_token_id=WORDS["<bos>"],
        eos_token_id=WORDS["<eos>"],
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=WORDS["<image>"],
        image_seq_length=spec.grid**2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    with seeded(seed):
        return LlavaForConditionalGeneration(config)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer of the questions."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    core: Any = Tokenizer(WordLevel(dict(WORDS), unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, padding_side="left", additional_special_tokens=["<image>"], model_max_length=512, **names
    )


def processor_files(spec: CanvasSpec) -> dict[str, str]:
    """Configuration files with which `AutoProcessor.from_pretrained` reads the folder, by file name."""
    side = {"height": spec.size, "width": spec.size}
    image = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": side,
        "do_center_crop": False,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [PIXEL_MEAN] * 3,
        "image_std": [PIXEL_STD] * 3,
        "do_convert_rgb": True,
    }
    whole = {
        "processor_class": "LlavaProcessor",
        "patch_size": spec.patch,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "image_token": "<image>",
    }
    return {"preprocessor_config.json": json.dumps(image, indent=1), "processor_config.json": json.dumps(whole, indent=1)}
