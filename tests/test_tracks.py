"""Tracks are chosen by compute capability and memory, and an unknown one is a sentence."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from helpers.tracks import TRACKS, TrackError, choose


def machine(monkeypatch, major=None, gib=0):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: major is not None)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda i: SimpleNamespace(major=major, total_memory=gib * 2**30),
    )


@pytest.mark.parametrize(
    ("major", "gib", "track"),
    [(None, 0, "pocket"), (7, 14.6, "t4"), (8, 22.2, "ampere"), (8, 15, "t4"), (6, 8, "pocket")],
    ids=["cpu", "T4", "L4", "A2000 16GB", "old 8 GB card"],
)
def test_auto_picks_by_capability_and_memory(monkeypatch, major, gib, track):
    machine(monkeypatch, major, gib)
    assert choose("auto").name == track


def test_emulated_bf16_does_not_count(monkeypatch):
    machine(monkeypatch, 7, 14.6)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)
    assert choose("auto").dtype != "bfloat16" and not choose("auto").bf16


def test_unknown_track_names_the_known_ones():
    with pytest.raises(TrackError, match="unknown track 'gpu'.*auto, pocket, t4, ampere"):
        choose("gpu")


@pytest.mark.parametrize(("field", "value"), [("dtype", "bf16"), ("batch_size", 0)])
def test_a_track_refuses_impossible_settings(field, value):
    with pytest.raises(TrackError, match=f"'pocket'.*{field}|{value}"):
        replace(TRACKS["pocket"], **{field: value})


def test_no_track_mixes_both_half_precisions():
    assert not any(track.bf16 and track.fp16 for track in TRACKS.values())
