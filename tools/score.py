"""Score anyone's answers from the public benchmarks' own files.

    python -m tools.score pope answers.jsonl coco_pope_random.json
    python -m tools.score amber responses.json AMBER/data
    python -m tools.score amber responses.json AMBER/data --public     # needs nltk and spaCy

Percent with 95% intervals over pictures: several questions share one. Below stand the figures as
the public program prints them.
"""

import argparse
import sys

import pandas as pd

from helpers.evaluation import amber
from helpers.evaluation.intervals import estimate, ratio
from helpers.evaluation.metrics import f1, opinion, probe_rows, yes_no
from tools import public_programs as public


def main(arguments=None):
    options = parse(arguments)
    try:
        lines = options.lines(options)
    except (ValueError, ImportError, LookupError, OSError) as problem:
        sys.exit(f"error: {problem}")
    print("\n".join(lines))


def parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m tools.score", description="Score answers from the benchmarks' own files."
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("pope", help="answers (JSON Lines) to POPE's questions")
    command.add_argument("answers", help="rows of question and answer, in the questions' order")
    command.add_argument("labels", help="POPE's file, such as coco_pope_random.json")
    command.set_defaults(lines=pope_lines)
    command = commands.add_parser("amber", help="responses (a JSON list) to AMBER's queries")
    command.add_argument("responses", help="rows of id and response")
    command.add_argument("data", help="the folder data of AMBER's repository")
    command.add_argument("--public", action="store_true", help="print its program's figures too")
    command.set_defaults(lines=amber_lines)
    return parser.parse_args(arguments)


def pope_lines(options):
    questions = pope_labels(options.labels)
    answers = pope_answers(options.answers, questions)
    labels, images = [row["label"] for row in questions], [row["image"] for row in questions]
    result = yes_no(answers, labels)
    return [
        *probe_lines("POPE", probe_rows(answers, labels), images, result),
        "as POPE's evaluate.py prints it: " + listed(public.pope_printed(result)),
    ]


def pope_labels(path):
    """POPE's questions: rows of question_id, image, text and label, from JSON Lines.

    Raises ValueError, naming file and line, for a missing field, an id that stands twice, and a
    label other than "yes" and "no", which to the public program is a yes.
    """
    labels, seen = [], {}
    for place, row in amber.json_rows(path):
        amber.unique_field(row, "question_id", place, seen)
        for name in ("image", "text", "label"):
            amber.field(row, name, str, place)
        if row["label"] not in ("yes", "no"):
            raise ValueError(f'{place}: the label is {row["label"]!r}, not "yes" or "no".')
        labels.append(row)
    return labels


def pope_answers(path, labels):
    """A model's answers as texts, in the order of `labels`.

    JSON Lines of question and answer, one for each label in the same order; or with a question_id,
    in any order. The public program goes by order alone, and stops where the shorter file ends.
    Raises ValueError, naming file and line, for a missing or repeated id, for another number of
    answers or another order, and for an empty answer (to the public program a yes).
    """
    found = amber.json_rows(path)
    by_id = "question_id" in found[0][1]
    if by_id:
        seen = {}
        rows = {
            amber.unique_field(row, "question_id", place, seen): (place, row)
            for place, row in found
        }
        ids = [label["question_id"] for label in labels]
        for number in rows.keys() - {*ids}:
            raise ValueError(f"{seen[number]}: there is no question with question_id {number}.")
        if gone := [number for number in ids if number not in rows]:
            raise ValueError(f"there is no answer to question_id {gone[0]} ({len(gone)} missing).")
        found = [rows[number] for number in ids]
    if len(found) != len(labels):
        raise ValueError(f"{path} has {len(found)} answers to {len(labels)} questions.")
    known, answers = {label["text"].casefold() for label in labels}, []
    for (place, row), label in zip(found, labels, strict=True):
        asked, wanted = str(row.get("question", "")), label["text"]
        if not by_id and asked.casefold() in known - {wanted.casefold()}:
            raise ValueError(
                f"{place} answers {asked!r}, but the question of that row is {wanted!r}: put them "
                "in the order of the questions, or add question_id."
            )
        answers.append(amber.field(row, "answer", str, place))
        if not answers[-1].strip():
            raise ValueError(f"{place}: the answer is empty.")
    return answers


def amber_lines(options):
    benchmark = amber.load(options.data)
    responses = amber.read_responses(options.responses, benchmark)
    described = amber.generative(responses, benchmark)
    probed = amber.discriminative(responses, benchmark)
    lines = described_lines(described) if described.captions else []
    for name, ids in amber.groups(responses, benchmark).items():
        items = [benchmark.items[number] for number in ids]
        given, truth = [responses[number] for number in ids], [item.truth for item in items]
        rows = probe_rows(given, truth, "no", opinion)
        images = [item.image or number for item, number in zip(items, ids, strict=True)]
        lines += probe_lines(f"AMBER, {name}", rows, images, probed[name])
    if described.captions and "all" in probed:
        lines.append(f"AMBER score {amber.amber_score(described.chair_i, probed['all'].f1):.1f}")
    return lines + (public_lines(responses, benchmark) if options.public else [])


def public_lines(responses, benchmark):
    similar = public.spacy_similar()
    described = public.amber_hallucination(responses, benchmark, public.nltk_nouns, similar)
    probed = amber.discriminative(responses, benchmark, parse=public.amber_exact)
    tables = public.amber_printed(described if described.captions else None, probed)
    printed = [f"  {name}: {listed(table)}" for name, table in tables.items()]
    return ["as AMBER's inference.py prints it:", *printed]


def described_lines(described):
    per_caption = described.per_caption
    columns = {
        "CHAIR": [(len(c.hallucinated), len(c.mentioned)) for c in per_caption],
        "Cover": [(len(c.true_positives), len(c.truth)) for c in per_caption],
        "Hal": [(bool(c.hallucinated), 1) for c in per_caption],
        "Cog": [(len(c.prone_mentioned), len(c.prone)) for c in per_caption],
    }
    head = f"AMBER, descriptions: n = {described.captions} pictures, {described.mentions} mentions"
    return [head, *(line(name, estimate(rows, ratio)) for name, rows in columns.items())]


def probe_lines(name, rows, images, result):
    """Accuracy, precision, recall and F1 with intervals, and what else to know of the answerer."""
    # The sums of each picture's rows: drawing them is drawing pictures with all their questions.
    columns = ["correct", "true positives", "predicted positives", "positives"]
    table = pd.DataFrame(rows, columns=columns).assign(questions=1)
    pictures = table.groupby(list(images), sort=False).sum()

    def of(over, under):
        return estimate(pictures[[over, under]], ratio)

    return [
        f"{name}: n = {len(pictures)} pictures, {result.n} questions",
        line("accuracy", of("correct", "questions")),
        line("precision", of("true positives", "predicted positives")),
        line("recall", of("true positives", "positives")),
        line("F1", estimate(pictures[columns], f1)),
        f"  yes-ratio {100 * result.yes_ratio:.1f}; {result.disputed} answers taken for the "
        "contrary of what they say first",
    ]


def line(name, figure):
    return (
        f"  {name:10}{100 * figure.value:6.1f}  [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"
    )


def listed(table):
    return ", ".join(f"{name} {value}" for name, value in table.items())


if __name__ == "__main__":
    main()
