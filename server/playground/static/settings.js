// The settings of a column: a table of what can be set, and its form.
import { h } from "./dom.js";
import { DEFAULTS, SCORER_KEYS, effectiveGuidance } from "./request.js";

const METHODS = {
  cbs: "chunk-level beam search",
  best_of_n: "best of N",
  eft: "every token (EFT)",
  none: "plain sampling",
};

const METHOD = { key: "method", label: "Method", options: METHODS, hint: "How the pairs steer: they choose chunks, whole answers or tokens. Without a weight it is plain sampling." };
const SEARCH = [
  { key: "beam_width", label: "W, beam width", min: 1, max: 64, hint: "Hypotheses kept after each chunk. More search wider and stream later." },
  { key: "successors", label: "K, successors", min: 1, max: 64, hint: "Continuations drawn of each hypothesis; answers, for best of N." },
  { key: "chunk_length", label: "L, chunk length", min: 1, max: 200, hint: "Tokens per chunk. Short chunks select more often." },
];
const BRAKES = [
  { key: "repetition", label: "Repetition brake", min: 0, step: 0.1, hint: "Nats that each repeated word trigram costs. 1 is a good value." },
  { key: "fluency", label: "Fluency", min: 0, step: 0.05, hint: "Weight of what the large model finds likely; keeps facts right." },
  { key: "length_penalty", label: "Length penalty", min: -4, max: 4, step: 0.1, hint: "Ranks are divided by tokens to this power; 1 is the mean per token." },
  { key: "early_stopping", label: "Early stopping", toggle: true, hint: "End when the best hypothesis is finished: shorter and cheaper." },
  { key: "early_rejection", label: "Early rejection", min: 0, max: 0.99, step: 0.05, method: "best_of_n", hint: "Best of N gives up this share of the answers, the lowest in rank, after each L tokens." },
  { key: "max_sampled_tokens", label: "Sampled tokens, at most", min: 1, hint: "What the search may draw, pruned tokens included." },
];
const TEMPERATURE = { label: "Temperature", min: 0, max: 2, step: 0.05, hint: "How much the large model's draws vary; 0 is greedy." };
const KINDS = { pairs: "pair", reward_models: "reward model", scorers: "scorer" };

/** Fills `form` with a column's settings. `changed` is called after each change. */
export function renderSettings(form, column, model, changed) {
  const own = { ...DEFAULTS, ...(model?.default_guidance ?? { method: "none" }) };
  const now = { ...own, ...column.guidance, method: effectiveGuidance(column, model)?.method ?? "none" };
  const again = () => {
    const focused = document.activeElement.id;
    changed();
    renderSettings(form, column, model, changed);
    document.getElementById(focused)?.focus();
  };
  const id = (key) => `${column.letter}-${key}`;
  const set = (key, value) => {
    if (key !== "method" && JSON.stringify(value) === JSON.stringify(own[key])) delete column.guidance[key];
    else column.guidance[key] = value;
    document.getElementById(id("method")).value = effectiveGuidance(column, model)?.method ?? "none";
    changed();
  };
  const setMethod = (key, value) => (set(key, value), again());
  const fields = (specs) => specs.filter(({ method }) => method === undefined || method === now.method).map((spec) => field(spec, now[spec.key], own[spec.key], id(spec.key), set));
  form.replaceChildren(
    group("Steering", ...weights(column, model, own, now, id, set), field(METHOD, now.method, own.method, id("method"), setMethod)),
    group("Search", ...fields(SEARCH)),
    group("Brakes", ...fields(BRAKES)),
    group("Sampling", temperature(column, model, id("temperature"), changed)),
    h("p", { class: "reset" }, h("button", { type: "button", id: id("reset"), class: "quiet", onclick: () => (reset(column), again()) }, "Back to the model's own settings")),
  );
}

function reset(column) {
  column.guidance = {};
  column.temperature = null;
}

function group(title, ...fields) {
  return h("fieldset", {}, h("legend", {}, title), ...fields);
}

/** Label, input and the line that explains it. */
function labelled(id, label, input, hint, output = null) {
  return h("div", { class: "field" }, h("label", { for: id }, label), input, output, h("p", { class: "hint", id: `${id}-hint` }, hint));
}

/** A setting's field. Emptied, it has the served model's `own` value again, as the API has it for what is not given. */
function field(spec, value, own, id, set) {
  const described = { id, "aria-describedby": `${id}-hint` };
  if (spec.options) {
    const options = Object.entries(spec.options).map(([name, text]) => h("option", { value: name, selected: name === value }, text));
    return labelled(id, spec.label, h("select", { ...described, onchange: (event) => set(spec.key, event.target.value) }, ...options), spec.hint);
  }
  if (spec.toggle) {
    const input = h("input", { ...described, type: "checkbox", onchange: (event) => set(spec.key, event.target.checked) });
    input.checked = value;
    return labelled(id, spec.label, input, spec.hint);
  }
  const read = (event) => set(spec.key, event.target.value === "" ? own : Number(event.target.value));
  return labelled(id, spec.label, numberInput(spec, value, { ...described, placeholder: own }, read), spec.hint);
}

function numberInput({ min, max, step = 1 }, value, more, read) {
  const input = h("input", { ...more, type: "number", min, max, step: step === 1 ? 1 : "any", oninput: read });
  input.value = value ?? "";
  return input;
}

function temperature(column, model, id, changed) {
  const read = (event) => {
    column.temperature = event.target.value === "" ? null : Number(event.target.value);
    changed();
  };
  const input = numberInput(TEMPERATURE, column.temperature, { id, "aria-describedby": `${id}-hint` }, read);
  input.placeholder = String(model?.default_sampling.temperature ?? 1);
  return labelled(id, TEMPERATURE.label, input, TEMPERATURE.hint);
}

/** A slider and a number for the weight of everything that can score. */
function weights(column, model, own, now, id, set) {
  const known = model?.available_scorers ?? {};
  return SCORER_KEYS.flatMap((key) =>
    [...new Set([...(known[key] ?? []), ...Object.keys(now[key])])].map((name) => {
      const write = (text) => {
        const { [name]: _, ...others } = column.guidance[key] ?? own[key];
        const weight = Number(text);
        set(key, weight === 0 ? others : sorted({ ...others, [name]: weight }, own[key]));
      };
      const slider = h("input", { type: "range", min: -3, max: 3, step: 0.1, "aria-label": `Weight of ${name}, slider` });
      const fieldId = id(`${key}-${name}`);
      const number = numberInput({ step: 0.1 }, now[key][name] ?? 0, { id: fieldId, "aria-describedby": `${fieldId}-hint` }, (event) => {
        slider.value = event.target.value;
        write(event.target.value);
      });
      slider.value = now[key][name] ?? 0;
      slider.addEventListener("input", () => {
        number.value = slider.value;
        write(slider.value);
      });
      const hint = `Weight of this ${KINDS[key]}'s score. Below 0 steers away from what it likes; 0 leaves it out.`;
      return h("div", { class: "weight" }, labelled(fieldId, name, number, hint, slider));
    }),
  );
}

/** The same entries, those of the default first and in its order, so that equal ones compare equal. */
function sorted(map, order) {
  return { ...Object.fromEntries(Object.keys(order).filter((name) => name in map).map((name) => [name, map[name]])), ...map };
}

/** The settings in a line: `cbs · W 2 · K 4 · L 5 · positive 1`. */
export function summarize(guidance) {
  if (guidance === null) return "plain sampling";
  const { method, beam_width: w, successors: k, chunk_length: l } = guidance;
  const shapes = { cbs: `W ${w} · K ${k} · L ${l}`, best_of_n: `best of ${k}`, eft: "every token" };
  const steering = SCORER_KEYS.flatMap((key) => Object.entries(guidance[key])).map(([name, weight]) => `${name} ${nice(weight)}`);
  const shape = Object.hasOwn(shapes, method) ? shapes[method] : method;
  return [shape, ...steering].join(" · ");
}

function nice(weight) {
  return String(weight).replace("-", "−");
}
