// From the page's settings to a request's body, and back out as curl and Python.
import { endpoint, hasKey } from "./api.js";

const KEY_VARIABLE = "W2S_API_KEY";
export const SCORER_KEYS = ["pairs", "reward_models", "scorers"];
export const STEERING = ["method", ...SCORER_KEYS];

/** The guidance that holds for a column: the served model's, changed by the column's. Null: plain sampling. */
export function effectiveGuidance(column, model) {
  const own = model?.default_guidance ?? null;
  if (own === null && Object.keys(column.guidance).length === 0) return null;
  const guidance = { ...DEFAULTS, ...own, ...column.guidance };
  const steers = SCORER_KEYS.some((key) => Object.keys(guidance[key]).length > 0);
  return guidance.method === "none" || !steers ? null : guidance;
}

// What the API takes where neither the request nor the served model says anything (docs/api.md).
export const DEFAULTS = {
  ...{ method: "cbs", pairs: {}, reward_models: {}, scorers: {}, beam_width: 4, successors: 4, chunk_length: 5 },
  ...{ repetition: 0, fluency: 0, length_penalty: 0, early_stopping: false, early_rejection: 0 },
  max_sampled_tokens: null,
};

/** Sequences that the large model samples at once. Null: W or K is no whole number above 0, which the API refuses. */
export function rowsOf(guidance) {
  if (guidance === null || guidance.method === "eft") return 1;
  const { method, beam_width: w, successors: k } = guidance;
  const factors = method === "best_of_n" ? [k] : [w, k];
  return factors.every((factor) => Number.isInteger(factor) && factor > 0) ? factors.reduce((a, b) => a * b) : null;
}

/** The body of a column's request, without what only this page needs, and its path. `guidance` is what holds for it. */
export function buildRequest(shared, column, guidance) {
  const chat = shared.mode === "chat";
  const prompt = chat ? { messages: [{ role: "user", content: shared.prompt }] } : { prompt: shared.prompt };
  const body = { model: column.model, ...prompt, seed: shared.seed };
  if (shared.max_tokens !== null) body.max_tokens = shared.max_tokens;
  if (column.temperature !== null) body.temperature = column.temperature;
  if (guidance === null && Object.keys(column.guidance).length) body.guidance = { method: "none" };
  else if (Object.keys(column.guidance).length) body.guidance = usedBy(guidance.method, column.guidance);
  return { path: chat ? "v1/chat/completions" : "v1/completions", body };
}

/** The settings that a method can use, in one order: the server refuses others. */
function usedBy(method, guidance) {
  const used = Object.keys(DEFAULTS).filter((key) => key in guidance && (key !== "early_rejection" || method === "best_of_n"));
  return Object.fromEntries(used.map((key) => [key, guidance[key]]));
}

/** The same request as a stream, with its rounds if it is a search. */
export function streamed(body, guided) {
  const stream = { ...body, stream: true, stream_options: { include_usage: true } };
  return guided ? { ...stream, guidance: { ...body.guidance, trace: "stream" } } : stream;
}

/** The request for a terminal. A key is an environment variable, and never the key itself. */
export function asCurl({ path, body }) {
  const lines = [`curl ${quoted(endpoint(path))}`, "-H 'Content-Type: application/json'"];
  if (hasKey()) lines.push(`-H "Authorization: Bearer $${KEY_VARIABLE}"`);
  return [...lines, `-d ${quoted(JSON.stringify(body, null, 2))}`].join(" \\\n  ");
}

/** A text as a shell's word. */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

const CLIENT_FIELDS = ["model", "messages", "prompt", "max_tokens", "seed", "temperature"];

/** The request for the official client. */
export function asPython({ path, body }) {
  const chat = path.includes("chat");
  const fields = Object.entries(body).filter(([name]) => CLIENT_FIELDS.includes(name));
  const extra = Object.entries(body).filter(([name]) => !CLIENT_FIELDS.includes(name));
  const lines = fields.map(([name, value]) => `    ${name}=${literal(value)},`);
  if (extra.length) lines.push(`    extra_body=${literal(Object.fromEntries(extra))},`);
  const key = hasKey() ? `os.environ["${KEY_VARIABLE}"]` : '"none"';
  return [
    ...(hasKey() ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(endpoint("v1"))}, api_key=${key})`,
    `answer = client.${chat ? "chat.completions" : "completions"}.create(`,
    ...lines,
    ")",
    `print(answer.choices[0].${chat ? "message.content" : "text"})`,
    ...(body.guidance?.trace ? ['print(answer.guidance["tree"])'] : []),
  ].join("\n");
}

/** A value as Python writes it. JSON's strings are Python's, too. */
function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item)}`).join(", ")}}`;
}
