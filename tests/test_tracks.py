"""Tracks are chosen by compute capability and memory, and an unknown one is a sentence."""

from dataclasses import replace

import pytest

from helpers.setup.machine import Machine
from helpers.setup.tracks import TRACKS, TrackError, choose


def card(capability, gib):
    return Machine("cuda", "a card", capability, gib)


T4, L4 = card((7, 5), 14.6), card((8, 9), 22.0)
CPU, APPLE = Machine("cpu", "CPU", None, 12.7), Machine("mps", "Apple GPU", None, 36.0)


@pytest.mark.parametrize(
    ("machine", "track"),
    [
        (CPU, "pocket"),
        (APPLE, "pocket"),
        (T4, "t4"),
        (L4, "ampere"),
        (card((8, 0), 39.4), "ampere"),
        (card((8, 6), 15.0), "t4"),
        (card((7, 5), 8.0), "pocket"),
        (card((6, 0), 16.0), "pocket"),
    ],
    ids=["CPU", "Apple", "T4", "L4", "A100", "16 GB Ampere", "8 GB Turing", "P100"],
)
def test_auto_picks_by_capability_and_memory(machine, track):
    assert choose("auto", machine=machine).name == track


@pytest.mark.parametrize(
    ("name", "machine", "expected"),
    [
        ("pocket", L4, ("float32", None, "cpu")),
        ("t4", T4, ("float32", "fp16", "cuda")),
        ("t4", L4, ("bfloat16", "bf16", "cuda")),
        ("ampere", L4, ("bfloat16", "bf16", "cuda")),
        ("ampere", T4, ("float16", "fp16", "cuda")),
        ("ampere", CPU, ("float32", None, "cpu")),
        ("t4", APPLE, ("float32", None, "mps")),
    ],
)
def test_precision_and_device_are_the_machines(name, machine, expected):
    track = choose(name, machine=machine)
    assert (track.dtype, track.autocast, track.device) == expected


def test_model_and_data_change_by_one_argument():
    track = choose("t4", model="me/model", dataset="me/pairs", machine=T4)
    assert (track.model, track.dataset) == ("me/model", "me/pairs")
    assert replace(track, model=TRACKS["t4"].model, dataset=TRACKS["t4"].dataset) == choose(
        "t4", machine=T4
    )


def test_unknown_track_names_the_known_ones():
    with pytest.raises(TrackError, match="unknown track 'gpu'.*auto, pocket, t4, ampere"):
        choose("gpu")


@pytest.mark.parametrize(
    ("field", "value"), [("dtype", "bf16"), ("autocast", "half"), ("batch_size", 0)]
)
def test_a_track_refuses_impossible_settings(field, value):
    with pytest.raises(TrackError, match=f"'pocket'.*{field}.*{value}|'pocket': {field}"):
        replace(TRACKS["pocket"], **{field: value})
