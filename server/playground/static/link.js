// The settings in the page's address, behind the #, which no browser sends to a server. Keys are never in it.
import { DEFAULTS, SCORER_KEYS } from "./request.js";

const SHARED = { mode: String, prompt: String, max_tokens: Number, seed: Number };

/** `#mode=chat&prompt=…&b.model=…&b.beam_width=2&b.pairs.positive=-1` */
export function toFragment(shared, columns) {
  const said = new URLSearchParams();
  for (const name of Object.keys(SHARED)) if (shared[name] !== null) said.set(name, shared[name]);
  for (const [letter, column] of Object.entries(columns)) {
    said.set(`${letter}.model`, column.model);
    if (column.temperature !== null) said.set(`${letter}.temperature`, column.temperature);
    for (const [key, value] of Object.entries(column.guidance)) {
      if (!SCORER_KEYS.includes(key)) said.set(`${letter}.${key}`, value);
      else if (Object.keys(value).length === 0) said.set(`${letter}.${key}`, "");
      else for (const [name, weight] of Object.entries(value)) said.set(`${letter}.${key}.${name}`, weight);
    }
  }
  return `#${said}`;
}

/** Changes `shared` and `columns` to what a fragment says. What it does not know, it leaves out. */
export function applyFragment(fragment, shared, columns) {
  for (const [path, text] of new URLSearchParams(fragment.replace(/^#/, ""))) {
    if (Object.hasOwn(SHARED, path)) {
      const value = SHARED[path](text);
      if (typeof value === "string" || Number.isFinite(value)) shared[path] = value;
    } else if (/^[ab]\./.test(path)) {
      applyToColumn(columns[path[0]], path.slice(2), text);
    }
  }
  if (!["chat", "completion"].includes(shared.mode)) shared.mode = "chat";
}

function applyToColumn(column, path, text) {
  const [, key, name] = path.match(/^(\w+)(?:\.(.+))?$/s) ?? [];
  const number = Number(text);
  if (key === "model") column.model = text;
  else if (key === "temperature" && text !== "" && Number.isFinite(number)) column.temperature = number;
  else if (SCORER_KEYS.includes(key)) {
    column.guidance[key] ??= {};
    if (name !== undefined && Number.isFinite(number)) column.guidance[key][name] = number;
  } else if (Object.hasOwn(DEFAULTS, key)) {
    const value = typeof DEFAULTS[key] === "string" ? text : typeof DEFAULTS[key] === "boolean" ? text === "true" : number;
    if (typeof value !== "number" || Number.isFinite(value)) column.guidance[key] = value;
  }
}
