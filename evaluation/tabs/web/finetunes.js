// Clicks in a part of the Finetunes tab go to the server; copying and the focus stay here.
// `element`, `trigger` and `watch` are given by gr.HTML's js_on_load. Texts travel by dataset and textContent only.

async function copy(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // no clipboard over plain http: select it, so that Ctrl-C does
    const box = document.createElement("textarea");
    box.value = text;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
    button.focus();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = label; }, 1500);
}

element.addEventListener("click", (event) => {
  const copied = event.target.closest("[data-copy]");
  if (copied) return void copy(copied.dataset.copy, copied);
  const code = event.target.closest("[data-copy-code]");
  if (code) return void copy(code.closest(".ft-snippet").querySelector("pre code").textContent, code);
  const button = event.target.closest("[data-act]");
  const row = event.target.closest("tr[data-id]");
  if (!button && (!row || getSelection().toString())) return;
  const { act, id } = button ? button.dataset : { act: "open", id: row.dataset.id };
  document.body.dataset.finetuneFocus = button?.dataset.focus ?? `open ${id}`;
  trigger("click", { kind: act, value: id });
});

// A part that is drawn anew loses the focus, or leaves it on what came to stand there: give it back to the button of the
// same name, wherever that is now.
watch("value", () => {
  const wanted = document.body.dataset.finetuneFocus;
  const active = document.activeElement;
  if (!wanted || (active !== document.body && !active.closest("#finetunes [data-focus]"))) return;
  const button = [...element.querySelectorAll("[data-focus]")].find((found) => found.dataset.focus === wanted);
  if (!button) return;
  button.focus({ preventScroll: true });
  button.scrollIntoView({ block: "nearest" });
  delete document.body.dataset.finetuneFocus;
});
