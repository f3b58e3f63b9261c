"""Shared by the tests: an untrained pocket VLM (seconds, no checkpoint needed) and a few scenes."""

import pytest
import torch

from helpers import pocket, world


@pytest.fixture(scope="session")
def processor():
    return pocket.build_processor()


@pytest.fixture
def untrained(processor):
    """A new random model for each test: tests may train or break it."""
    return pocket.build_model(processor, seed=0).eval()


@pytest.fixture(scope="session")
def scenes():
    return world.sample_scenes(6, "iid")


@pytest.fixture(scope="session")
def images(scenes):
    return [world.draw(scene) for scene in scenes]


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)
