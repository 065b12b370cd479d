// The server's API: the served models, and answers that stream. Addresses are relative to the page.
import { eventsOf } from "./sse.js";

/** An error that can be shown to a person. `status` is 0 if the server could not be reached. */
export class ApiError extends Error {
  constructor(status, title, message) {
    super(message);
    this.status = status;
    this.title = title;
  }
}

const TITLES = {
  400: "The server refuses this request",
  401: "An API key is needed",
  404: "There is no such model",
  413: "The request is too long",
  429: "Too many requests at the moment",
  502: "A provider failed",
  503: "The server is not ready",
  504: "It took too long",
};

// The API key that a visitor typed in. It lives in this variable alone and ends with the page.
let key = null;

export function setKey(value) {
  key = value || null;
}

export function hasKey() {
  return key !== null;
}

export function endpoint(path) {
  return new URL(path, document.baseURI).href;
}

function headers(more = {}) {
  return key === null ? more : { ...more, Authorization: `Bearer ${key}` };
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(endpoint(path), { ...options, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached", "Is it still running? Nothing was answered.");
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  let details = {};
  try {
    details = (await response.json()).error ?? {};
  } catch {
    // a proxy's page, say
  }
  const title = TITLES[response.status] ?? `The server answered ${response.status}`;
  const wait = response.headers.get("retry-after");
  const parts = [details.message ?? `HTTP ${response.status} ${response.statusText}`.trim()];
  if (details.param && !parts[0].includes(details.param)) parts.push(`(field: ${details.param})`);
  if (wait && response.status === 429) parts.push(`Try again in ${wait} s.`);
  return new ApiError(response.status, title, parts.join(" "));
}

/** The served models, as `GET /v1/models` describes them. */
export async function fetchModels() {
  const response = await send("v1/models", { headers: headers() });
  return (await response.json()).data;
}

/** Yields the chunks of a streamed answer. Throws ApiError, also for an error that comes in the stream. */
export async function* stream(path, body, signal) {
  const options = { method: "POST", headers: headers({ "Content-Type": "application/json" }), signal };
  const response = await send(path, { ...options, body: JSON.stringify(body) });
  let complete = false;
  try {
    for await (const data of eventsOf(response.body)) {
      complete ||= data === "[DONE]";
      if (complete) continue; // until the server closes the stream
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(500, "The answer broke off", chunk.error.message);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError(0, "The connection broke off", "What came until then is shown.");
  }
  if (!complete) throw new ApiError(0, "The connection broke off", "The answer ended without its last event.");
}
