"""Tokenry: the tokens inside neural networks. Importing it loads no torch; every wing is loaded when first used."""

from __future__ import annotations

from tokenry.catalog import built_wings
from tokenry.lazy import lazy_exports

__version__ = "0.1.0"

_EXPORTS = {
    **{wing: f"tokenry.{wing}" for wing in built_wings()},
    "core": "tokenry.core",
    "hosts": "tokenry.hosts",
    "lab": "tokenry.lab",
    "testing": "tokenry.testing",
    "catalog": "tokenry.catalog",
    "systems": "tokenry.catalog",
    "system": "tokenry.catalog",
    "UnsupportedModelError": "tokenry.errors",
    "MissingDependencyError": "tokenry.errors",
    "AssetMissingError": "tokenry.errors",
    "AssetDamagedError": "tokenry.errors",
    "ResultFileError": "tokenry.errors",
}

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
__all__ = [*sorted(_EXPORTS), "__version__"]
