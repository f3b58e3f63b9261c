"""Score anyone's answers from the public benchmarks' own files.

    python -m tools.score pope answers.jsonl coco_pope_random.json
    python -m tools.score amber responses.json AMBER/data
    python -m tools.score amber responses.json AMBER/data --public     # needs nltk and spaCy

Percent with 95% intervals over pictures: several questions share one. Below stand the figures as
the public program prints them.
"""

import argparse
import sys

import numpy as np

from helpers.evaluation import amber, amber_public, language, pope
from helpers.evaluation.intervals import estimate, ratio, totals
from helpers.evaluation.metrics import f1, probe_rows


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
    labels = pope.read_labels(options.labels)
    answers = pope.read_answers(options.answers, labels)
    result = pope.score(answers, labels)
    rows = probe_rows(answers, [label.label for label in labels])
    return [
        *probe_lines("POPE", rows, [label.image for label in labels], result),
        "as POPE's evaluate.py prints it: " + listed(pope.printed(result)),
    ]


def amber_lines(options):
    benchmark = amber.load(options.data)
    responses = amber.read_responses(options.responses, benchmark)
    described = amber.generative(responses, benchmark)
    probed = amber.discriminative(responses, benchmark)
    lines = described_lines(described) if described.captions else []
    for name, ids in amber.groups(responses, benchmark).items():
        items = [benchmark.items[number] for number in ids]
        given, truth = [responses[number] for number in ids], [item.truth for item in items]
        rows = probe_rows(given, truth, "no", amber.opinion)
        images = [item.image or number for item, number in zip(items, ids, strict=True)]
        lines += probe_lines(f"AMBER, {name}", rows, images, probed[name])
    if described.captions and "all" in probed:
        lines.append(f"AMBER score {amber.amber_score(described.chair_i, probed['all'].f1):.1f}")
    return lines + (public_lines(responses, benchmark) if options.public else [])


def public_lines(responses, benchmark):
    described = amber_public.generative(responses, benchmark, language.nouns, language.similar())
    tables = amber_public.printed_discriminative(
        amber.discriminative(responses, benchmark, parse=amber.exact)
    )
    if described.captions:
        tables = {"descriptions": amber_public.printed_generative(described)} | tables
    printed = [f"  {name}: {listed(table)}" for name, table in tables.items()]
    return ["as AMBER's inference.py prints it:", *printed]


def described_lines(described):
    per_caption = described.per_caption
    columns = {
        "CHAIR": [(len(c.hallucinated), len(c.mentioned)) for c in per_caption],
        "Cover": [(len(c.hits), len(c.truth)) for c in per_caption],
        "Hal": [(bool(c.hallucinated), 1) for c in per_caption],
        "Cog": [(len(c.prone_hits), len(c.prone)) for c in per_caption],
    }
    head = f"AMBER, descriptions: n = {described.captions} pictures, {described.mentions} mentions"
    return [head, *(line(name, estimate(rows, ratio)) for name, rows in columns.items())]


def probe_lines(name, rows, images, result):
    """Accuracy, precision, recall and F1 with intervals, and what else to know of the answerer."""
    by_image = totals(np.column_stack([rows, np.ones(len(rows))]), images)
    right, hits, claimed, actual, items = by_image.T
    return [
        f"{name}: n = {len(by_image)} pictures, {result.n} questions",
        line("accuracy", estimate(np.column_stack([right, items]), ratio)),
        line("precision", estimate(np.column_stack([hits, claimed]), ratio)),
        line("recall", estimate(np.column_stack([hits, actual]), ratio)),
        line("F1", estimate(by_image[:, :4], f1)),
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
