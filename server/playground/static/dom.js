// Small helpers for the document. Text becomes text nodes; there is no way from a string to markup.

/** Makes an element: `h("p", {class: "hint"}, "text", child)`. `on…` properties are listeners. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function byId(id) {
  return document.getElementById(id);
}

/** Calls `draw` once in the next animation frame, however often it is asked for. */
export function perFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
}

const [FINE, COARSE] = [2, 0].map((digits) => new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));

/** A score for people: 3.14, −0.50, 12.30, 1,234. */
export function nats(value) {
  if (value === null || value === undefined) return "–";
  const text = (Math.abs(value) < 100 ? FINE : COARSE).format(value);
  return /[1-9]/.test(text) ? text.replace("-", "−") : text.replace("-", "");
}

export function count(value) {
  return Number(value).toLocaleString("en");
}

export function seconds(value) {
  return `${value.toFixed(value < 10 ? 1 : 0)} s`;
}

/** Has a screen reader say something, politely. `source` is a column's letter: what one says does not cut off another. */
export function announce(text, source = "") {
  byId(source === "" ? "news" : `news-${source}`).textContent = text;
}
