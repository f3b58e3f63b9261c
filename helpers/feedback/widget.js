// The page's half of widget.py: shows a card, sends choices, saves nothing itself.
//
// model.view     {reply, error, annotator, file, done, skipped, total, time, sharp,
//                 card: {key, number, question, A, B} or null}
// model.picture  bytes of a JPEG or PNG
// sends          {action: "label" | "skip" | "undo", pair: key of the card, value}
//
// Questions and answers are untrusted: they go into the page as textContent, never as HTML.

const KEYS = {
  "1": "A", a: "A", arrowleft: "A",
  "2": "B", b: "B", arrowright: "B",
  "3": "tie", t: "tie",
};
const REASONS = ["cannot tell", "both are wrong", "question unclear", "picture unclear"];
const SILENCE = 3000; // ms without an answer from the kernel before the page says so

function make(tag, className, text = "", attributes = {}) {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function button(className, text, keys, action) {
  const node = make("button", `vd-button ${className}`, "", { type: "button" });
  node.append(make("span", "vd-words", text));
  for (const key of keys) node.append(make("kbd", "vd-key", key, { "aria-hidden": "true" }));
  node.setAttribute("aria-keyshortcuts", keys.join(" "));
  node.addEventListener("click", action);
  return node;
}

function answer(side, keys, action) {
  const node = button("vd-answer", "", keys, action);
  node.prepend(make("span", "vd-side", side));
  return node;
}

function layout(choose, openReason, skip, closeReason) {
  const root = make("div", "vd-root", "", {
    tabindex: "0",
    role: "group",
    "aria-label": "Which answer says better what is in the picture?",
    // JupyterLab's own keys (a, b, d d) must not reach the cell from in here.
    "data-lm-suppress-shortcuts": "true",
  });
  const parts = {
    root,
    where: make("span", "vd-where"),
    time: make("span", "vd-time"),
    bar: make("progress", "vd-bar", "", { "aria-label": "pairs done" }),
    card: make("div", "vd-card"),
    picture: make("img", "vd-picture", "", { alt: "The picture that the question is about" }),
    question: make("p", "vd-question"),
    A: answer("A", ["1", "←"], () => choose("label", "A")),
    B: answer("B", ["2", "→"], () => choose("label", "B")),
    tie: button("", "No difference", ["3"], () => choose("label", "tie")),
    skip: button("", "Skip …", ["S"], openReason),
    undo: button("", "Undo", ["U"], () => choose("undo")),
    form: make("form", "vd-form"),
    reason: make("input", "vd-reason", "", { type: "text", maxlength: "300", "aria-label": "Why?" }),
    end: make("p", "vd-end"),
    error: make("p", "vd-error", "", { role: "alert" }),
    saved: make("p", "vd-saved", "", { role: "status" }),
    hint: make("p", "vd-hint", "Click here to use the keys."),
  };
  const head = make("div", "vd-head");
  head.append(parts.where, parts.time);
  const answers = make("div", "vd-answers");
  answers.append(parts.A, parts.B);
  const words = make("div", "vd-text");
  words.append(parts.question, make("p", "vd-task", "Which answer says better what is in the picture?"), answers);
  parts.card.append(parts.picture, words);
  const more = make("div", "vd-more");
  more.append(parts.tie, parts.skip, parts.undo);
  parts.form.append(make("span", "vd-why", "Why skip this pair?"));
  for (const text of REASONS) parts.form.append(button("", text, [], () => skip(text)));
  parts.form.append(
    parts.reason,
    make("button", "vd-button vd-send", "Skip", { type: "submit" }),
    button("", "Cancel", ["Esc"], closeReason),
  );
  parts.form.addEventListener("submit", (event) => {
    event.preventDefault();
    skip(parts.reason.value);
  });
  const foot = make("div", "vd-foot");
  foot.append(parts.saved, parts.hint);
  root.append(head, parts.bar, parts.card, parts.end, more, parts.form, parts.error, foot);
  return parts;
}

function render({ model, el }) {
  let waiting = null; // the timer of a choice that the kernel has not answered
  let address = null; // the blob: URL of the picture
  const parts = layout(choose, openReason, skip, closeReason);
  const { root, form, reason } = parts;
  form.hidden = true;

  function choose(action, value = null) {
    const view = model.get("view");
    if (waiting || (action !== "undo" && !view.card)) return;
    waiting = setTimeout(() => {
      waiting = null; // the kernel refuses what was about another card, so trying again is safe
      parts.error.textContent =
        "The kernel does not answer, and nothing is saved until it does. If it is busy, wait; if " +
        "it was restarted, run this cell again and go on where you stopped.";
    }, SILENCE);
    root.setAttribute("aria-busy", "true");
    model.send({ action, pair: view.card ? view.card.key : null, value });
  }

  function skip(text) {
    if (text.trim()) return choose("skip", text);
    parts.error.textContent = "Say why, in a word or two, or choose one of the reasons.";
    reason.focus();
  }

  function openReason() {
    if (!model.get("view").card) return;
    form.hidden = false;
    reason.focus();
  }

  function closeReason() {
    form.hidden = true;
    reason.value = parts.error.textContent = "";
    root.focus({ preventScroll: true });
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    event.stopPropagation(); // the notebook has its own meaning for a, b, d, Enter
    const key = event.key.toLowerCase();
    if (!form.hidden) {
      if (key === "escape") closeReason();
      return;
    }
    if (event.repeat) return;
    if (key in KEYS) choose("label", KEYS[key]);
    else if (key === "s") openReason();
    else if (key === "u") choose("undo");
    else return;
    event.preventDefault(); // arrows would scroll, s would be the first letter of the reason
  }

  function showPicture(sharp) {
    if (address) URL.revokeObjectURL(address);
    address = URL.createObjectURL(new Blob([model.get("picture")]));
    parts.picture.src = address;
    parts.picture.classList.toggle("vd-sharp", sharp);
  }

  function show() {
    const view = model.get("view");
    const { card } = view;
    clearTimeout(waiting);
    waiting = null;
    root.removeAttribute("aria-busy");
    parts.where.textContent = card ? `Pair ${card.number} of ${view.total}` : "All done";
    parts.time.textContent = [view.annotator, view.time].filter(Boolean).join(" · ");
    parts.bar.max = view.total;
    parts.bar.value = view.done;
    parts.error.textContent = view.error;
    const skipped = view.skipped ? `, ${view.skipped} skipped` : "";
    parts.saved.textContent = `Saved: ${view.done} of ${view.total}${skipped}, in ${view.file}`;
    parts.end.textContent = `All ${view.total} pairs are labelled. Thank you.`;
    parts.end.hidden = Boolean(card);
    parts.card.hidden = parts.tie.hidden = parts.skip.hidden = !card;
    parts.undo.disabled = !view.done;
    if (card) showCard(card, view.sharp);
    if (!view.error) startAfresh();
  }

  function showCard(card, sharp) {
    showPicture(sharp);
    parts.question.textContent = card.question;
    for (const side of ["A", "B"]) {
      parts[side].querySelector(".vd-words").textContent = card[side];
      parts[side].setAttribute("aria-label", `${side}: ${card[side]}`);
    }
  }

  function startAfresh() {
    // From the button just clicked to the whole: Enter must not choose the same side again.
    if (root.contains(el.getRootNode().activeElement)) root.focus({ preventScroll: true });
    form.hidden = true;
    reason.value = "";
  }

  root.addEventListener("keydown", onKey);
  model.on("change:view", show);
  show();
  el.append(root);
  return () => {
    clearTimeout(waiting);
    model.off("change:view", show);
    if (address) URL.revokeObjectURL(address);
  };
}

export default { render };
