// Server-sent events from a fetch response, however the network cuts the stream.

/** Splits a text stream into the data of its events (https://html.spec.whatwg.org/multipage/server-sent-events.html). */
export class EventParser {
  #rest = "";
  #data = [];

  /** Takes the next part of the stream; returns the data of each event that is complete by now. */
  push(text) {
    this.#rest += text;
    const events = [];
    // A \r at the very end may be half of a \r\n, so it waits for the next part.
    const lines = this.#rest.split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line === "" && this.#data.length) {
        events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) {
        this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
    return events;
  }
}

/** Yields the data of each event of a response's body. */
export async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      yield* parser.push(done ? decoder.decode() : decoder.decode(value, { stream: true }));
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
