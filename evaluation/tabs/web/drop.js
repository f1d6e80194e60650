// Files that are dropped anywhere on the Sweep tab go to its upload, which opens to say what became of them.
const form = byId("sweep-form");
const tab = form.closest("[role=tabpanel]");

function findUpload() {
  return byId("upload-box").querySelector("input[type=file]");
}

function upload(files) {
  const input = findUpload();
  if (input) {
    input.files = files;
    return void input.dispatchEvent(new Event("change", { bubbles: true }));
  }
  const opened = new MutationObserver(() => {
    if (!findUpload()) return;
    opened.disconnect();
    upload(files);
  });
  opened.observe(byId("upload-box"), { childList: true, subtree: true });
  byId("upload-box").querySelector("button").click(); // folded away, it is not there yet
}

for (const kind of ["dragover", "dragleave", "drop"]) {
  tab.addEventListener(kind, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault(); // the browser would open the file in place of the page
    form.classList.toggle("dropping", kind === "dragover");
    if (kind === "drop") upload(event.dataTransfer.files);
  });
}
