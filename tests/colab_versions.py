"""What Colab ships, of what the setup cell may touch: tests/colab_versions.txt, and its renewal.

    python -m tests.colab_versions FILE-OR-ADDRESS 2026-08-19

The list is pip-freeze.gpu.txt of github.com/googlecolab/backend-info, the date that of its commit.
"""

import re
import sys
import urllib.request
from pathlib import Path

from helpers.setup.colab import KEEP, pins

FILE = Path(__file__).with_suffix(".txt")
OTHERS = {*KEEP, "torchao"}


def colab_versions() -> dict[str, str]:
    """{name: version}; names as in constraints.txt."""
    return dict(line.split("==") for line in FILE.read_text().splitlines() if line[0] != "#")


def renew(source: str, date: str) -> None:
    """Write the list again from a pip freeze; what constraints.txt does not pin is left out."""
    if "://" in source:
        text = urllib.request.urlopen(source, timeout=60).read().decode()
    else:
        text = Path(source).read_text(encoding="utf-8")
    ours = {name.lower(): name for name in {*pins(), *OTHERS}}
    found = re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.MULTILINE)
    lines = [f"{ours[name.lower()]}=={version}" for name, version in found if name.lower() in ours]
    FILE.write_text("\n".join([f"# googlecolab/backend-info, {date}", *lines, ""]))


if __name__ == "__main__":
    renew(*sys.argv[1:])
