// Asks for the API key, where the server wants one. The key goes to `api.js` and nowhere else.
import { hasKey, setKey } from "./api.js";
import { byId } from "./dom.js";

/** Lets `entered()` be called with a new key, from the dialog. */
export function listenForKey(entered) {
  const field = byId("key");
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = field.value.trim();
    if (!/^[\x21-\x7e]+$/.test(key)) return askForKey("A key has letters, digits and signs of ASCII, and no blanks.");
    setKey(key);
    field.value = "";
    byId("key-dialog").close();
    entered();
  });
  byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
  byId("key-button").addEventListener("click", () => askForKey(""));
}

/** Opens the dialog. `why` says what was wrong with the last key. */
export function askForKey(why) {
  byId("key-button").hidden = false;
  byId("key-error").textContent = why;
  byId("key-error").hidden = why === "";
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
  byId("key").focus();
}

export function showKeyState() {
  byId("key-button").textContent = hasKey() ? "API key ✓" : "API key";
}
