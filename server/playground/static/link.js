// The settings in the page's address, behind the #, which no browser sends to a server. Keys are never in it.
import { DEFAULTS, SCORER_KEYS } from "./request.js";

const SHARED = { mode: String, prompt: String, max_tokens: Number, seed: Number };
const NULLABLE = ["max_tokens", "seed"]; // their fields may be empty

/** `#mode=chat&prompt=…&b.model=…&b.beam_width=2&b.pairs.positive=-1`. What is null is empty: `&seed=`. */
export function toFragment(shared, columns) {
  const fields = new URLSearchParams();
  for (const name of Object.keys(SHARED)) fields.set(name, shared[name] ?? "");
  for (const [letter, column] of Object.entries(columns)) {
    fields.set(`${letter}.model`, column.model);
    if (column.temperature !== null) fields.set(`${letter}.temperature`, column.temperature);
    for (const [key, value] of Object.entries(column.guidance)) {
      if (!SCORER_KEYS.includes(key)) fields.set(`${letter}.${key}`, value);
      else if (Object.keys(value).length === 0) fields.set(`${letter}.${key}`, "");
      else for (const [name, weight] of Object.entries(value)) fields.set(`${letter}.${key}.${name}`, weight);
    }
  }
  return `#${fields}`;
}

/** Changes `shared` and `columns` to what a fragment says. What it does not know, it leaves out. */
export function applyFragment(fragment, shared, columns) {
  for (const [path, text] of new URLSearchParams(fragment.replace(/^#/, ""))) {
    if (Object.hasOwn(SHARED, path)) {
      const value = SHARED[path] === Number ? numberOf(path, text) : text;
      if (value !== undefined) shared[path] = value;
    } else if (/^[ab]\./.test(path)) {
      applyToColumn(columns[path[0]], path.slice(2), text);
    }
  }
  if (!["chat", "completion"].includes(shared.mode)) shared.mode = "chat";
}

function applyToColumn(column, path, text) {
  const [, key, name] = path.match(/^(\w+)(?:\.(.+))?$/s) ?? [];
  const number = numberOf(key, text);
  if (key === "model") column.model = text;
  else if (key === "temperature") column.temperature = number ?? column.temperature;
  else if (SCORER_KEYS.includes(key)) {
    column.guidance[key] ??= {};
    if (name !== undefined && number !== undefined) column.guidance[key][name] = number;
  } else if (Object.hasOwn(DEFAULTS, key)) {
    const value = typeof DEFAULTS[key] === "string" ? text : typeof DEFAULTS[key] === "boolean" ? text === "true" : number;
    if (value !== undefined) column.guidance[key] = value;
  }
}

/** The number of a field; null if it is empty and may be, undefined if it is none. */
function numberOf(key, text) {
  if (text === "") return NULLABLE.includes(key) ? null : undefined;
  const number = Number(text);
  return Number.isFinite(number) ? number : undefined;
}
