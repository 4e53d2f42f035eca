"""The optional dependencies: which packages each extra brings, and one clear sentence when one is missing."""

from __future__ import annotations

from importlib.util import find_spec

from tokenry.errors import MissingDependencyError

EXTRAS: dict[str, dict[str, str]] = {
    "lab": {
        "accelerate": "accelerate", "gguf": "gguf", "jinja2": "jinja2", "matplotlib": "matplotlib", "pandas": "pandas",
        "pillow": "PIL", "scikit-learn": "sklearn", "scipy": "scipy", "soundfile": "soundfile",
        "statsmodels": "statsmodels",
    },
    "search": {"faiss-cpu": "faiss"},
    "harness": {"accelerate": "accelerate", "lm_eval": "lm_eval"},
    "training": {"accelerate": "accelerate", "datasets": "datasets", "peft": "peft", "trl": "trl"},
    "generation": {"diffusers": "diffusers"},
    "audio": {"soundfile": "soundfile"},
    "speech": {"ctranslate2": "ctranslate2", "jiwer": "jiwer"},
    "sentencepiece": {"protobuf": "google.protobuf", "sentencepiece": "sentencepiece"},
    "zstd": {"zstandard": "zstandard"},
    "scale": {"ray": "ray"},
    "peers": {"vector-quantize-pytorch": "vector_quantize_pytorch"},
}  # fmt: skip
"""Extra -> distribution -> module. The same as ``optional-dependencies`` of the package."""


def require(*extras: str) -> None:
    """Refuse before any work if a package of these extras cannot be found.

    Raises:
        MissingDependencyError: names the packages and the command that adds all of them.
    """
    missing = [name for extra in extras for name, module in EXTRAS[extra].items() if not _found(module)]
    if missing:
        needed = ",".join(extra for extra in extras if any(name in missing for name in EXTRAS[extra]))
        verb = "is" if len(missing) == 1 else "are"
        raise MissingDependencyError(
            f"{', '.join(missing)} {verb} needed here and not installed; run: pip install 'tokenry[{needed}]'"
        )


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that a dotted name stands in
        return False
