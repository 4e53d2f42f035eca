"""The model inside what others put around it."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tokenry.hosts.vision import describe
from tokenry.hosts.wrappers import unwrapped
from tokenry.testing import tiny


class Peft(nn.Module):
    """The shape of a PEFT model: `base_model.model`, and `get_base_model` that answers with it."""

    def __init__(self, model):
        super().__init__()
        self.base_model = nn.ModuleDict({"model": model})

    def get_base_model(self):
        return self.base_model["model"]


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU())


WRAPPERS = {"compiled": torch.compile, "parallel": nn.DataParallel, "peft": Peft}


@pytest.mark.parametrize(
    "order",
    ["compiled", "parallel", "peft", "compiled parallel", "parallel compiled", "peft parallel", "peft parallel compiled"],
)
def test_wrappers_are_taken_off_however_they_are_nested(model, order):
    wrapped = model
    for name in order.split():
        wrapped = WRAPPERS[name](wrapped)
    assert wrapped is not model
    assert unwrapped(wrapped) is model


def test_distributed(model, tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert unwrapped(nn.parallel.DistributedDataParallel(model)) is model
    finally:
        torch.distributed.destroy_process_group()


def test_what_is_no_wrapper_stays(model):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.other = nn.Linear(2, 2), nn.Linear(2, 2)

    for plain in (model, Two(), tiny("vit"), tiny("clip")):
        assert unwrapped(plain) is plain


def test_hosts_look_inside():
    vit = tiny("vit")
    copy = AveragedModel(vit)
    for wrapper in (torch.compile(vit), nn.DataParallel(vit), Peft(vit), nn.DataParallel(Peft(vit))):
        assert describe(wrapper).model is vit
    assert describe(copy).model is copy.module
