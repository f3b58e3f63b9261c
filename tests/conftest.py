"""Shared by the tests: a hub on loopback, an untrained pocket VLM (seconds), a few scenes.

No test reaches another hub than this one, and those that do not use the fixture `hub` reach none.
"""
# ruff: noqa: E402  (the libraries read the environment once, when they are imported)

import logging
import os
import shutil
import time
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from tests.hub import Hub

FOLDER = TemporaryDirectory(prefix="hub-")
HUB = Hub(FOLDER.name)
os.environ.update(HUB.environment(), HF_HUB_OFFLINE="1")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports optional kernels

import datasets.config
import huggingface_hub
import matplotlib.pyplot as plt
import pytest
import torch

from helpers.vlm import pocket
from helpers.world.scenes import draw, sample_scenes


@pytest.fixture(scope="session")
def processor():
    return pocket.build_processor()


@pytest.fixture
def untrained(processor):
    """A new random model for each test: tests may train or break it."""
    return pocket.build_model(processor, seed=0).eval()


@pytest.fixture(scope="session")
def scenes():
    return sample_scenes(6, "iid")


@pytest.fixture(scope="session")
def images(scenes):
    return [draw(scene) for scene in scenes]


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def running_hub():
    with HUB:
        yield HUB


@pytest.fixture
def hub(running_hub, monkeypatch):
    """The hub, with nothing on it or in the caches; the libraries do not wait before a retry."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setattr(datasets.config, name, False)
    for name in vars(datasets.config):
        if name.startswith("STREAMING_") and name.endswith("_INTERVAL"):
            monkeypatch.setattr(datasets.config, name, 0)
    hasty = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    for module in (huggingface_hub.utils._http, huggingface_hub.file_download):
        monkeypatch.setattr(module, "time", hasty)
    yield running_hub
    running_hub.clear()
    huggingface_hub.HfFileSystem.clear_instance_cache()
    huggingface_hub.close_session()
    shutil.rmtree(running_hub.environment()["HF_HOME"], ignore_errors=True)
