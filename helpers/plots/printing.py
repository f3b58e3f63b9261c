"""Printed text that a notebook shows whole words of.

    print_wrapped("truth:", world.describe(scene))

JupyterLab breaks a line that is too long for its window wherever that ends, within a word too.
"""

import textwrap

COLUMNS = 96  # fits JupyterLab beside its file browser, and a page


def print_wrapped(*texts, columns=COLUMNS):
    """Print like `print`, each line broken between words; what goes on is indented once more."""
    for line in " ".join(map(str, texts)).split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        wrapped = textwrap.wrap(
            line,
            columns,
            subsequent_indent=indent + "    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        print("\n".join(wrapped))
