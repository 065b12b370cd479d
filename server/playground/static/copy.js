// The dialog that shows a column's request as curl and as Python, for the clipboard.
import { byId } from "./dom.js";
import { asCurl, asPython } from "./request.js";

const COPIED_MS = 1800;
const TITLES = { shown: "The request of the answer shown", now: "The request with the settings as they are now" };
let requests = null;

/** Shows a request as code: that of the answer on the page or, where one is chosen or there is no answer yet, the next. */
export function showCode({ shown, now }) {
  requests = { shown: shown ?? now, now };
  byId("code-of").hidden = JSON.stringify(requests.shown) === JSON.stringify(now);
  for (const radio of document.querySelectorAll("input[name=code-of]")) radio.checked = radio.value === (shown === null ? "now" : "shown");
  render();
  byId("code-dialog").showModal();
}

export function listenForCopies() {
  for (const radio of document.querySelectorAll("#code-dialog input[type=radio]")) radio.addEventListener("change", render);
  byId("code-tree").addEventListener("change", render);
  byId("code-close").addEventListener("click", () => byId("code-dialog").close());
  byId("code-copy").addEventListener("click", () => {
    window.getSelection().selectAllChildren(byId("code-text"));
    copy(byId("code-text").textContent, byId("code-copy"), "Press Ctrl+C");
  });
}

function render() {
  const which = document.querySelector("input[name=code-of]:checked").value;
  const request = requests[which];
  byId("code-title").textContent = `${TITLES[which]} (${request.guided ? "guided" : "plain"}, ${request.body.model})`;
  const python = document.querySelector("input[name=code]:checked").value === "python";
  const withTree = byId("code-tree").checked;
  const body = withTree ? { ...request.body, guidance: { ...request.body.guidance, trace: true } } : request.body;
  byId("code-tree").closest("label").hidden = !request.guided;
  byId("code-text").textContent = (python ? asPython : asCurl)({ path: request.path, body: request.guided ? body : request.body });
}

/** Copies a text, and says so on the button for a while. Where a page may not (plain HTTP), it says `otherwise`. */
export async function copy(text, button, otherwise) {
  button.dataset.label ??= button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = otherwise;
  }
  setTimeout(() => (button.textContent = button.dataset.label), COPIED_MS);
}
