"""What the outputs of a published notebook may look like: tidied streams, nothing of one machine.

cell.outputs = tidy(cell.outputs)
faults = output_faults(notebook)     # sentences; empty when all is fit to publish
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRESS_BAR = re.compile(r"\d+%\|.*\|")  # tqdm's; its last state tells a reader nothing
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDGET_BAR = re.compile(r"\d+%\|.*\||\[\d+:\d\d[,<].*\]")  # tqdm's in a notebook, as plain text
# Text that only makes sense on the machine that built the notebook.
MACHINE_PATHS = re.compile(
    r"site-packages/|ipykernel_\d+|/(?:home|Users|root|tmp|var/folders)/|[A-Z]:\\+Users"
)


def tags(cell):
    return cell.metadata.get("tags", [])


def tidy(outputs):
    """Join pieces of a stream, show what carriage returns left standing, drop progress bars, and
    of a widget that is written in HTML, too, keep that, which needs no kernel."""
    kept = []
    for output in outputs:
        data = output.get("data", {})
        if WIDGET in data and WIDGET_BAR.search(data.get("text/plain", "")):
            continue
        output, last = output.copy(), kept[-1] if kept else None
        if "text/html" in data:
            output.data = {kind: value for kind, value in data.items() if kind != WIDGET}
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            lines = [overwrite(line) for line in output.text.split("\n")]
            output.text = "\n".join(line for line in lines if not PROGRESS_BAR.search(line))
    return [output for output in kept if output.output_type != "stream" or output.text.strip()]


def overwrite(line):
    """What is left of a line after its carriage returns: the last of a progress bar's states."""
    states = [state for state in line.split("\r") if state]
    return states[-1].rstrip() if len(states) > 1 else "".join(states)


def output_faults(notebook):
    """Sentences on outputs that must not be published; an empty list when all are fit."""
    faults = []
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            text = output_text(output)
            if output.output_type == "error":
                faults.append(f"cell {number} ends in {output.ename}: {output.evalue}")
            if WIDGET in output.get("data", {}):
                faults.append(f"cell {number} shows a widget, which GitHub cannot; print text")
            if found := machine_path(text):
                faults.append(f"cell {number} shows a path of the building machine: {found!r}")
    return faults


def output_text(output):
    """All that a reader sees as text, without pictures."""
    data = output.get("data", {})
    texts = [value for kind, value in data.items() if not kind.startswith("image/")]
    texts += [output.get("text", ""), *output.get("traceback", [])]
    return re.sub(r"base64,[\w+/=\s]+", "", "\n".join(map(str, texts)))


def machine_path(text):
    """The line that holds a path of this machine (or of any, by its form), or None."""
    local = [str(path) for path in (ROOT, Path.home()) if len(path.parts) > 1]
    for line in text.splitlines():
        if MACHINE_PATHS.search(line) or any(path in line for path in local):
            return line.strip()[:120]
    return None
