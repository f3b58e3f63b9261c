"""Batches: every row once, the longest first, halved where memory runs out."""

import pytest
import torch

from helpers.vlm.answers import answers
from helpers.vlm.batches import Job, all_results, in_batches, longest_first


def doubling(order, most=10**9):
    """A job that doubles its rows' numbers, with memory for `most` rows at once."""
    tried = []

    def run(rows):
        tried.append(len(rows))
        if len(rows) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [2 * row for row in rows]

    return Job("doubling", ["?"] * len(order), order, run), tried


def test_results_are_in_the_order_of_the_rows():
    job, tried = doubling([3, 0, 4, 1, 2])
    assert [rows for rows, _ in in_batches(job, 2)] == [[3, 0], [4, 1], [2]]
    assert all_results(job, 2) == [0, 2, 4, 6, 8]
    assert all_results(doubling([])[0], 2) == []


def test_out_of_memory_halves_the_batch_and_goes_on(capsys):
    job, tried = doubling(list(range(20)), most=3)
    assert all_results(job, 16) == [2 * row for row in range(20)]
    assert tried[:4] == [16, 8, 4, 2]
    assert set(tried[4:]) == {2}  # what did not fit is not tried again
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "out of memory with 16 pictures at once: 8 from here" and len(said) == 3


def test_out_of_memory_with_one_picture_is_raised():
    job, tried = doubling(list(range(4)), most=0)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="one picture at a time: lower .*edge"):
        all_results(job, 4)
    assert tried == [4, 2, 1]


def test_another_error_is_not_taken_for_memory():
    def run(rows):
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        all_results(Job("failing", ["?"] * 4, [0, 1, 2, 3], run), 4)


@pytest.mark.filterwarnings("ignore:.*answers were cut")
def test_answers_of_halved_batches_are_the_same(untrained, processor, images, monkeypatch):
    asked = ["What do you see?", "Is there a fork?"] * 3
    whole = answers(untrained, processor, images, asked, max_new_tokens=8)
    generate = untrained.generate

    def small(**batch):
        if len(batch["input_ids"]) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return generate(**batch)

    monkeypatch.setattr(untrained, "generate", small)
    assert answers(untrained, processor, images, asked, max_new_tokens=8) == whole


def test_longest_first(processor, images):
    short, long = "Is there a fork?", "Is there one red fork to the left of the two cups?"
    assert longest_first(processor, images[:5], [short, long, short, long, short]) == [
        1,
        3,
        0,
        2,
        4,
    ]


def test_more_tiles_go_before_more_words(processor, images, monkeypatch):
    sizes = [image.resize((width, 48)) for image, width in zip(images, (10, 30, 20), strict=False)]
    monkeypatch.setattr(
        type(processor.image_processor),
        "get_number_of_image_patches",
        lambda self, height, width, options: (width, 1, width),
    )
    assert longest_first(processor, sizes, ["a red fork", "a", "a fork"]) == [1, 2, 0]
