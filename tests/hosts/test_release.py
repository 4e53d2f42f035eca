"""The transformers range: one file knows names and versions, old and new names both work, a newer release is said."""

import inspect
import logging
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from tokenry.errors import NotInForceWarning, UnsupportedModelError, UntestedReleaseWarning
from tokenry.hosts import release
from tokenry.hosts.attach import attached
from tokenry.hosts.release import CACHE, as_argument, cache_in, cache_of, check_takes_cache, takes_cache
from tokenry.lab.beds.vqa.bed import load_vqa
from tokenry.pruning import D2O, H2O, FastV, IDPruner, StreamingLLM
from tokenry.testing import tiny
from tokenry.text.lexinvariant import LexinvariantConfig, LexinvariantForCausalLM

ROOT = Path(__file__).resolve().parents[2]
IDS = torch.arange(2, 22)[None]


def lexinvariant():
    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LexinvariantForCausalLM(LexinvariantConfig(**sizes)).eval()


def test_the_cache_has_the_name_of_the_installed_release():
    model = tiny("llama", num_hidden_layers=4)
    cache = DynamicCache()
    out = model(IDS, use_cache=True, **as_argument(cache))
    assert cache_of(out) is cache
    assert cache.get_seq_length() == IDS.shape[1]
    assert CACHE in inspect.signature(model.forward).parameters
    assert CACHE in inspect.signature(model.model.layers[0].self_attn.forward).parameters
    check_takes_cache(model)


@pytest.mark.parametrize("name", ["cache", "past_key_values", "cache_params"])
def test_arguments_are_read_under_every_name(name):
    cache = DynamicCache()
    assert cache_in({name: cache, "use_cache": True}) is cache
    assert cache_in({name: None}) is None


def test_our_own_models_take_either_name_once():
    model = lexinvariant()
    assert CACHE in inspect.signature(model.forward).parameters
    out = model(IDS, use_cache=True)
    for name in ("cache", "past_key_values"):
        cache = cache_of(model(IDS, seed=1, use_cache=True))
        assert cache_of(model(IDS[:, :1], **{name: cache})) is cache
    with pytest.raises(TypeError, match="give the cache once"):
        model(IDS[:, :1], cache=cache_of(out), past_key_values=cache_of(out))


def test_a_method_shows_the_installed_name():
    @takes_cache
    def forward(ids, cache=None):
        return cache

    assert list(inspect.signature(forward).parameters) == ["ids", CACHE]
    assert forward(1, 2) == forward(1, cache=2) == forward(1, past_key_values=2) == 2


def test_a_forward_without_a_known_name_is_refused_with_the_release():
    class Renamed(nn.Module):
        def forward(self, ids, memory=None):
            return ids

    with pytest.raises(UnsupportedModelError, match=re.escape(release.INSTALLED)):
        check_takes_cache(Renamed())


@pytest.mark.parametrize("method", [D2O(budget=0.5), H2O(budget=0.5), StreamingLLM(budget=0.5)])
def test_layers_that_see_no_cache_say_the_release_and_not_that_the_user_is_wrong(method, monkeypatch):
    model = tiny("llama", num_hidden_layers=4)
    with method.attach(model):
        with pytest.raises(ValueError, match="use_cache must be True"):
            model(IDS, use_cache=False)
        monkeypatch.setattr(release, "_NAMES", ("a name of tomorrow",))
        with pytest.raises(UnsupportedModelError, match=re.escape(release.release())):
            model(IDS, use_cache=True)


@pytest.mark.parametrize("pruner", [IDPruner(keep=0.5), FastV(keep=0.5)], ids=lambda p: type(p).__name__)
def test_a_vision_language_model_without_a_known_cache_is_refused_before_it_decodes_at_wrong_places(pruner, monkeypatch):
    model = load_vqa().model
    monkeypatch.setattr(release, "_NAMES", ("a name of tomorrow",))
    with pytest.raises(UnsupportedModelError, match=re.escape(release.release())), pruner.attach(model):
        pass


def test_a_newer_minor_release_warns_once(monkeypatch):
    monkeypatch.setattr(release, "_warned", False)
    monkeypatch.setattr(release, "INSTALLED", "5.99.0.dev0")
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.warns(UntestedReleaseWarning, match=r"5\.99\.0"), attached(model, "A"):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with attached(model, "A"):
            pass
    monkeypatch.setattr(release, "INSTALLED", release.NEWEST + ".1")
    assert not release.is_newer()


def test_a_model_that_runs_past_all_hooks_is_reported_at_exit():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    said = re.escape(release.release())
    with pytest.warns(NotInForceWarning, match=said), attached(model, "A") as hooks:  # noqa: PT031 (the exit warns)
        hooks.forward(model[0], lambda *_: None)
        model.forward = lambda x: x  # what a compiled or replaced forward does
        model(torch.ones(1, 2))
    del model.forward
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with attached(model, "A") as hooks:  # reached
            hooks.forward(model[0], lambda *_: None)
            model(torch.ones(1, 2))
        with attached(model, "A") as hooks:  # never run
            hooks.forward(model[0], lambda *_: None)


def test_one_file_knows_names_and_versions():
    names = re.compile(r"\bpast_key_values\b|\bcache_params\b|transformers\.__version__")
    for path in sorted((ROOT / "src").rglob("*.py")):
        if path.relative_to(ROOT / "src").as_posix() != "tokenry/hosts/release.py":
            assert names.search(path.read_text()) is None, path


def test_requirement_pin_and_code_name_the_same_range():
    assert f'"transformers>={release.LOWEST},<6"' in (ROOT / "pyproject.toml").read_text()
    assert f"transformers=={release.NEWEST}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_deprecations_of_transformers_fail_a_test():
    logger = logging.getLogger("transformers.models.any")
    with pytest.raises(AssertionError, match="deprecated"):
        logger.warning("`this` is deprecated")
