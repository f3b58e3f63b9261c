"""POPE from the Hub: the first questions of each kind, their pictures kept."""

import io
import itertools

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Features, Image, Value

from helpers.evaluation.pope_hub import COLUMNS, NAME, pope_rows
from helpers.setup import hub as hub_sentences
from helpers.setup.storage import PreferenceDataError
from helpers.world.scenes import NEGATIVES as KINDS
from tests.standin import rlaifv_shards

TEXT = Value("string")
FEATURES = Features(
    id=TEXT, question_id=TEXT, question=TEXT, answer=TEXT,
    image_source=TEXT, image=Image(), category=TEXT,
)  # fmt: skip
PICTURES = 40
PER_PICTURE = 6
THINGS = {"random": "skis", "popular": "chair", "adversarial": "snowboard"}


def photographs(count):
    """JPEG bytes of different pictures, one after the other."""
    shards = [pyarrow.parquet.read_table(io.BytesIO(d)) for d in rlaifv_shards(2 * count).values()]
    images = (row["image"]["bytes"] for shard in shards for row in shard.to_pylist())
    return list(dict.fromkeys(images))[:count]


def questions(kind, pictures=PICTURES):
    """Rows as lmms-lab/POPE has them: six to a picture, yes and no in turn, the picture in each."""
    start = PER_PICTURE * pictures * ("adversarial", "popular", "random").index(kind)
    return [
        {
            "id": str(start + PER_PICTURE * number + i),
            "question_id": str(PER_PICTURE * number + i + 1),
            "question": f"Is there a {'person' if i % 2 == 0 else THINGS[kind]} {i} in the image?",
            "answer": "no" if i % 2 else "yes",
            "image_source": f"COCO_val2014_{number:012}",
            "image": {"bytes": data, "path": None},
            "category": kind,
        }
        for number, data in enumerate(photographs(pictures))
        for i in range(PER_PICTURE)
    ]


def pope_files(pictures=PICTURES, change=lambda row: row):
    """{path: parquet bytes} of such a dataset's configuration Full, several row groups a file."""
    return {
        f"Full/{kind}-00000-of-00001.parquet": parquet(map(change, questions(kind, pictures)))
        for kind in KINDS
    }


def parquet(raw, columns=tuple(FEATURES)):
    file = io.BytesIO()
    table = pyarrow.Table.from_pylist(list(raw), schema=FEATURES.arrow_schema)
    pyarrow.parquet.write_table(table.select(list(columns)), file, row_group_size=50)
    return file.getvalue()


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """No waiting."""
    monkeypatch.setattr(hub_sentences, "WAITS", (0, 0))


@pytest.fixture(scope="module")
def whole():
    return pope_files()


@pytest.fixture
def real(hub, whole):
    hub.add("datasets", NAME, whole)
    return hub


def asked(hub):
    return [path for method, path in hub.requests if method == "GET" and ".parquet" in path]


def on_disk(found):
    return [open(row["image"]["path"], "rb").read() for row in found]


# --- what comes out ----------------------------------------------------------------------------


def test_the_first_questions_of_each_kind_with_the_bytes_of_their_pictures(real, tmp_path, capsys):
    found = pope_rows(20, folder=tmp_path)
    said = capsys.readouterr().out
    assert "revision" in said and "MIT" in said and "COCO val2014" in said
    expected = [row for kind in KINDS for row in questions(kind)[:20]]
    names = {"question": "question", "label": "answer", "kind": "category", "group": "image_source"}
    for ours, theirs in names.items():
        assert [row[ours] for row in found] == [row[theirs] for row in expected]
    assert on_disk(found) == [row["image"]["bytes"] for row in expected]
    assert len(list(tmp_path.rglob("*.jpg"))) == 4, "a picture of six questions is kept once"
    real.requests.clear()
    assert pope_rows(20, folder=tmp_path) == found
    assert [row["kind"] for row in pope_rows(7, folder=tmp_path)] == [
        kind for kind in KINDS for _ in range(7)
    ]
    assert real.requests == [] and capsys.readouterr().out == ""


def test_more_questions_begin_with_those_that_are_kept(real, tmp_path):
    few = pope_rows(12, folder=tmp_path)
    more = pope_rows(120, folder=tmp_path)
    assert [more[120 * n + i] for n in range(3) for i in range(12)] == few
    assert len(asked(real)) == 3, "a file was downloaded twice"


def test_pictures_that_went_missing_are_fetched_again(real, tmp_path):
    first = pope_rows(12, folder=tmp_path)
    next(tmp_path.rglob("*.jpg")).unlink()
    assert pope_rows(12, folder=tmp_path) == first
    assert len(on_disk(first)) == 36


def test_the_revision_found_first_stays(real, whole, tmp_path):
    few = pope_rows(12, folder=tmp_path)
    real.add("datasets", NAME, pope_files(3, lambda row: row | {"question": "Is it new?"}))
    more = pope_rows(60, folder=tmp_path)
    assert [row["question"] for row in more[:12]] == [row["question"] for row in few[:12]]


# --- what can go wrong -------------------------------------------------------------------------


def test_a_broken_connection_is_one_sentence_and_goes_on(real, tmp_path):
    real.fail("Full/popular", 503, times=9)
    with pytest.raises(PreferenceDataError, match="connection to Full/popular.* broke"):
        pope_rows(120, folder=tmp_path)
    real.failures.clear()
    assert len(on_disk(pope_rows(120, folder=tmp_path))) == 360
    assert sum("Full/random" in path for path in asked(real)) == 1, "it was downloaded twice"


def test_without_a_network_it_says_so(real, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PreferenceDataError, match="not on this disk and HF_HUB_OFFLINE"):
        pope_rows(6, folder=tmp_path)


def test_too_few_questions(real, tmp_path):
    with pytest.raises(PreferenceDataError, match=f"{NAME} has 240 random questions, not 241: ask"):
        pope_rows(241, folder=tmp_path)
    assert len(pope_rows(240, folder=tmp_path)) == 720


def test_another_dataset_has_no_such_files(hub, tmp_path):
    hub.add("datasets", "me/other", rlaifv_shards(3))
    with pytest.raises(PreferenceDataError, match=r"me/other has no file Full/random-\*"):
        pope_rows(6, name="me/other", folder=tmp_path)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named(hub, tmp_path, column):
    columns = [name for name in FEATURES if name != column]
    files = {f"Full/{kind}-0.parquet": parquet(questions(kind, 2), columns) for kind in KINDS}
    hub.add("datasets", NAME, files)
    with pytest.raises(PreferenceDataError, match=f"column `{column}` is missing in Full/random-0"):
        pope_rows(6, folder=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"answer": "maybe"}, "the answer is 'maybe', not yes or no"),
        ({"answer": None}, "the answer is None, not yes or no"),
        ({"image": None}, "has no picture"),
        ({"image": {"bytes": None, "path": "/etc/hostname"}}, "has no picture"),
        ({"question": ""}, "no question"),
    ),
)
def test_a_bad_row_is_named(hub, tmp_path, change, message):
    number = itertools.count()
    files = pope_files(2, lambda row: row | (change if next(number) == 5 else {}))
    hub.add("datasets", NAME, files)
    with pytest.raises(PreferenceDataError, match=f"row 5 of Full/random.*{message}"):
        pope_rows(6, folder=tmp_path)


def test_a_damaged_file_is_fetched_anew(hub, whole, tmp_path):
    hub.add("datasets", NAME, {path: b"\0" * 50_000 for path in whole})
    with pytest.raises(PreferenceDataError, match="Full/random.* is damaged, or not parquet"):
        pope_rows(6, folder=tmp_path)
    repo = hub.repos["datasets", NAME]
    repo.commits[repo.sha] |= whole
    assert len(pope_rows(6, folder=tmp_path)) == 18


def test_a_damaged_store_says_what_to_remove(real, tmp_path):
    pope_rows(6, folder=tmp_path)
    (kept,) = tmp_path.rglob("popular.json")
    kept.write_text("[")
    with pytest.raises(
        PreferenceDataError, match=f"popular.json cannot be read.*remove {tmp_path}"
    ):
        pope_rows(6, folder=tmp_path)
