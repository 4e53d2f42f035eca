"""Vision-language models: signals of visual tokens, prompts without the ones that were not chosen."""

from tokenry.hosts.vlm.families import SUPPORTED, VLMFamily, add_vlm_family, has_cls, language_of
from tokenry.hosts.vlm.kept_columns import KeptColumns
from tokenry.hosts.vlm.prompt import Positions, prune_prompt
from tokenry.hosts.vlm.request import VisualTokens
from tokenry.hosts.vlm.signals import Signals
from tokenry.hosts.vlm.stage import BlockView, DecoderStage
from tokenry.hosts.vlm.weights import weigh_visual_tokens

__all__ = [
    "SUPPORTED",
    "BlockView",
    "DecoderStage",
    "KeptColumns",
    "Positions",
    "Signals",
    "VLMFamily",
    "VisualTokens",
    "add_vlm_family",
    "has_cls",
    "language_of",
    "prune_prompt",
    "weigh_visual_tokens",
]
