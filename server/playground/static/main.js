// The playground: asks two served models the same thing at once, and shows the search of the guided one.
import { endpoint, fetchModels, setKey } from "./api.js";
import { Column } from "./column.js";
import { copy, listenForCopies, showCode } from "./copy.js";
import { byId } from "./dom.js";
import { askForKey, listenForKey, showKeyState } from "./key.js";
import { applyFragment, toFragment } from "./link.js";
import { Tree } from "./tree.js";
import { TreeView } from "./view.js";

const STATES = { 401: "This server asks for an API key.", 503: "The models are still loading …" };
const PASSING = [0, 429, 503]; // a server that is away, busy, or loading; 0: it could not be reached
const RETRY_MS = 1500; // while the models load
const PAUSE_MS = 400;
const MAX_SEED = 10 ** 6;

const shared = { mode: "chat", prompt: "How was the movie?", max_tokens: 40, seed: 1 };
const view = new TreeView();
const columns = { a: new Column("a", treeChanged, () => changed()), b: new Column("b", treeChanged, () => changed()) };
let shown = "b"; // the column whose tree is shown
let writing = null; // the timer of the address
let reconnecting = null; // the timer of the next try to connect
let running = null; // the AbortController of the answers that are coming

function treeChanged(column) {
  if (column.letter === shown) view.changed(column.tree, column.answerNode);
}

function showTree(letter) {
  shown = letter;
  const column = columns[letter];
  for (const radio of document.querySelectorAll("input[name=tree-of]")) radio.checked = radio.value === letter;
  view.show(column.tree ?? new Tree(0), column.answerNode);
}

/** A setting has changed. It is written into the address after a pause in typing: browsers limit how often that may be. */
function changed(pauseMs = PAUSE_MS) {
  for (const column of Object.values(columns)) column.compare(shared);
  clearTimeout(writing);
  writing = setTimeout(() => history.replaceState(null, "", toFragment(shared, columns)), pauseMs);
}

/** Connects again in a while. */
function retry() {
  clearTimeout(reconnecting);
  reconnecting = setTimeout(connect, RETRY_MS);
}

/** Fetches the models, with a key if the server asks for one, and offers them. */
async function connect() {
  let models;
  try {
    models = await fetchModels();
  } catch (error) {
    showState(STATES[error.status] ?? `${error.title}. ${error.message}`);
    if (error.status === 401) keyRefused(byId("key-dialog").dataset.tried ? error.message : "");
    else if (PASSING.includes(error.status)) retry();
    byId("key-dialog").dataset.tried = "yes";
    return;
  } finally {
    showKeyState();
  }
  showState("");
  const plain = models.filter((model) => (model.default_guidance?.method ?? "none") === "none");
  const guided = models.filter((model) => !plain.includes(model));
  columns.a.model ||= (plain[0] ?? models[0]).id;
  columns.b.model ||= (guided[0] ?? models.at(-1)).id;
  const named = new Map(models.map((model) => [model.id, model]));
  for (const column of Object.values(columns)) column.offer(named);
  for (const id of ["run", "code-a", "code-b"]) byId(id).disabled = false;
}

/** Forgets the key, if there is one, and asks for another. */
function keyRefused(why) {
  setKey(null);
  showKeyState();
  askForKey(why);
}

function showState(text) {
  byId("state").textContent = text;
  byId("state").hidden = text === "";
}

async function run() {
  if (running !== null || byId("run").disabled) return;
  if (!Number.isInteger(shared.seed)) drawSeed();
  changed(0);
  running = new AbortController();
  byId("run").hidden = true;
  byId("stop").hidden = false;
  byId("stop").focus({ preventScroll: true });
  const answers = Object.values(columns).map((column) => column.run(shared, running.signal));
  const grows = Object.values(columns).filter((column) => column.tree !== null);
  byId("tree-tabs").hidden = grows.length < 2;
  showTree(grows.length === 0 || grows.includes(columns[shown]) ? shown : grows[0].letter);
  await Promise.all(answers);
  running = null;
  byId("stop").hidden = true;
  byId("run").hidden = false;
  if (document.activeElement === document.body) byId("run").focus({ preventScroll: true });
  if (Object.values(columns).some((column) => column.failure?.status === 401)) keyRefused("This key is not one of the server's.");
}

function drawSeed() {
  shared.seed = Math.floor(Math.random() * MAX_SEED);
  byId("seed").value = shared.seed;
}

/** Writes the shared settings into their fields. */
function showShared() {
  byId("prompt").value = shared.prompt;
  byId("max-tokens").value = shared.max_tokens;
  byId("seed").value = shared.seed;
  for (const radio of document.querySelectorAll("input[name=mode]")) radio.checked = radio.value === shared.mode;
}

function listen() {
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("prompt").addEventListener("input", (event) => ((shared.prompt = event.target.value), changed()));
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
  });
  byId("max-tokens").addEventListener("input", (event) => ((shared.max_tokens = event.target.value === "" ? null : Number(event.target.value)), changed()));
  byId("seed").addEventListener("input", (event) => {
    shared.seed = event.target.value === "" ? null : Number(event.target.value);
    changed();
  });
  byId("new-seed").addEventListener("click", () => (drawSeed(), changed()));
  onRadio("mode", (value) => ((shared.mode = value), changed()));
  onRadio("tree-of", showTree);
  byId("colour-by").addEventListener("change", (event) => view.colourBy(event.target.value));
  byId("zoom-in").addEventListener("click", () => view.zoom(1.25));
  byId("zoom-out").addEventListener("click", () => view.zoom(0.8));
  byId("zoom-fit").addEventListener("click", () => view.zoom(0));
  byId("share").addEventListener("click", () => {
    const fragment = toFragment(shared, columns);
    history.replaceState(null, "", fragment);
    copy(endpoint("playground") + fragment, byId("share"), "It is in the address bar");
  });
  for (const column of Object.values(columns)) {
    byId(`code-${column.letter}`).addEventListener("click", () => showCode(column.requests(shared)));
  }
  window.addEventListener("hashchange", () => location.reload()); // a link that was pasted over this page's
}

function onRadio(name, chosen) {
  for (const radio of document.querySelectorAll(`input[name=${name}]`)) {
    radio.addEventListener("change", () => chosen(radio.value));
  }
}

applyFragment(location.hash, shared, columns);
showShared();
listen();
listenForCopies();
listenForKey(connect);
connect();
