"""Yes/no questions about pictures whose answer is known, in one form on every track.

    probes = probes_for(track, 300)                          # 300 of each kind
    said = yes_no_answers(model, processor, probes["image"], probes["question"])
    correct = [a == label for a, label in zip(said, probes["label"], strict=True)]
    estimate(correct, clusters=probes["group"])                # an interval over pictures

A Dataset with a row a question: `image`, `question`, `label` ("yes" or "no"), `kind` and `group`,
which names the picture: questions about one picture are not independent. Pictures are decoded
when a row is read, so thousands of rows need little memory.
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import Dataset, Features, Image, Value

from helpers.evaluation import amber
from helpers.evaluation.pope_hub import pope_rows
from helpers.setup.storage import PreferenceDataError
from helpers.setup.tracks import Track
from helpers.world import scenes as world

PHOTOS = Path(__file__).resolve().parents[2] / "data" / "photos"
TEXT = Value("string")
PROBES = Features(image=Image(), question=TEXT, label=TEXT, kind=TEXT, group=TEXT)
AMBER_PROBES = Features({**PROBES, "id": Value("int64")})
DESCRIPTIONS = Features(image=Image(), question=TEXT, group=TEXT, id=Value("int64"))


def probes_for(
    track: Track, count: int, seed: int = 0, folder: str | Path | None = None
) -> Dataset:
    """`count` questions with each kind of negatives: random, popular, adversarial, in this order.

    Every kind asks about the same pictures, and the questions of a picture stand together, yes and
    no in turn: an even count is balanced. On the pocket track scenes are drawn for the `seed`. The
    GPU tracks take POPE from the Hub, always its first questions, so that everybody's figures are
    about the same ones; they are kept in `folder`, by default runs/data.
    Raises ValueError for a count below 1, PreferenceDataError when the data cannot be had.
    """
    if count < 1:
        raise ValueError(f"count={count}: ask for at least one question of each kind")
    rows = _pocket_rows(count, seed) if track.name == "pocket" else pope_rows(count, folder=folder)
    return _dataset(rows, PROBES)


def _dataset(rows: list[dict[str, Any]], features: Features) -> Dataset:
    return Dataset.from_list(rows, features=features).select_columns(list(features))  # in order


def _pocket_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """POPE's questions about scenes that no model was trained on, drawn once each."""
    rows = {kind: [] for kind in world.NEGATIVES}
    for number, scene in enumerate(world.sample_scenes(count, seed=seed)):  # more than are needed
        if len(rows["random"]) >= count:
            break
        picture = {"image": {"bytes": world.png(scene), "path": None}, "group": f"scene {number}"}
        for kind in rows:
            rows[kind] += [
                picture | {"question": probe.question, "label": probe.answer, "kind": kind}
                for probe in world.probes(scene, kind)
                if probe.kind == "existence"
            ]
    return [row for kind in rows for row in rows[kind][:count]]


def photo_probes() -> Dataset:
    """The 160 questions about the bundled photographs; `kind` is what they ask about:
    existence, attribute, count or relation. Four to a picture are few: look, do not rank models."""
    path = PHOTOS / "probes.parquet"
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise PreferenceDataError(
            f"{path} cannot be read ({error}): restore it with `git checkout -- data`"
        ) from None
    rows = [
        {
            "image": _file(PHOTOS / "images" / row["image_path"], "`git checkout -- data`"),
            "question": row["question"],
            "label": row["answer"],
            "kind": row["kind"],
            "group": row["image_path"],
        }
        for row in table.to_pylist()
    ]
    return _dataset(rows, PROBES)


# --- AMBER -------------------------------------------------------------------------------------

AMBER_FILES = ("annotations.json", "relation.json", "safe_words.txt", "query/query_all.json")
GET_AMBER = (
    "copy the folder `data` of github.com/junyangwang0410/AMBER, download the images that its "
    "README links to (section Image Download), and unpack them into the same folder"
)


def amber_queries(folder: str | Path) -> tuple[Dataset, Dataset]:
    """(probes, descriptions) of AMBER, with the pictures in `folder` or anywhere below it.

    probes: 14,216 questions in the form of `probes_for`, with their `id`; `kind`: existence, state,
    number, action or relation. descriptions: 1,004 rows of image, question, group and id. A model's
    texts by id are what `helpers.evaluation.amber` scores.
    Raises PreferenceDataError, saying where to get them, when files are missing; ValueError, naming
    file and entry, for malformed ones.
    """
    folder = Path(folder)
    for name in AMBER_FILES:
        if not (folder / name).exists():
            raise PreferenceDataError(f"{folder / name} is missing: {GET_AMBER}")
    items = amber.load(folder).items
    pictures = {path.name: path for path in folder.rglob("*.jpg")}
    probes, descriptions = [], []
    for place, query in amber.json_rows(folder / "query" / "query_all.json"):
        name = amber.field(query, "image", str, place)
        row = {
            "image": _file(pictures.get(name, folder / name), GET_AMBER),
            "question": amber.field(query, "query", str, place),
            "group": name,
            "id": amber.field(query, "id", int, place),
        }
        if row["id"] not in items:
            raise ValueError(f"{place}: annotations.json has no id {row['id']}.")
        item = items[row["id"]]
        if item.kind == "generative":
            descriptions.append(row)
        else:
            probes.append(row | {"label": item.truth, "kind": item.kind})
    return _dataset(probes, AMBER_PROBES), _dataset(descriptions, DESCRIPTIONS)


def _file(path: Path, remedy: str) -> dict[str, Any]:
    """A picture as a Dataset holds it: the file itself, which is read when the row is."""
    if not path.exists():
        raise PreferenceDataError(f"the picture {path} is missing: {remedy}")
    return {"bytes": None, "path": str(path.resolve())}
