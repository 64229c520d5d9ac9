// The table of workers. A row is made once a worker and changed in place.

import { byId, element, setText, show } from "./dom.js";
import { NOTHING, count, duration, percent } from "./format.js";

const rows = new Map();

export function showWorkers(status) {
  const wanted = Object.values(status.wanted).reduce((sum, size) => sum + size, 0);
  const ready = status.workers.filter((worker) => worker.state === "ready").length;
  setText(byId("workers-count"), `${ready} of ${wanted} ready`);
  show(byId("no-workers"), status.workers.length === 0);
  const ids = new Set(status.workers.map((worker) => worker.id));
  for (const [id, row] of rows) {
    if (!ids.has(id)) {
      row.remove();
      rows.delete(id);
    }
  }
  for (const worker of status.workers) {
    if (!rows.has(worker.id)) rows.set(worker.id, byId("workers").appendChild(newRow(worker.id)));
    fill(rows.get(worker.id), worker);
  }
}

function newRow(id) {
  const state = element("td", { "data-label": "State" }, element("span", { class: "dot" }), element("span", { class: "word" }));
  state.append(element("span", { class: "detail quiet" }));
  const filled = element("i");
  const bar = element("span", { class: "bar", role: "meter", "aria-valuemin": 0, "aria-valuemax": 100 }, filled);
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, id),
    state,
    element("td", { "data-label": "Pool", class: "pool" }),
    element("td", { "data-label": "Host", class: "host" }),
    element("td", { "data-label": "Running", class: "number running" }),
    element("td", { "data-label": "Waiting", class: "number waiting" }),
    element("td", { "data-label": "KV use", class: "kv" }, bar, element("span", { class: "share" })),
    element("td", { "data-label": "Hits", class: "number hits" }),
  );
}

function fill(row, worker) {
  const set = (place, text) => setText(row.querySelector(place), text);
  const load = worker.load;
  row.dataset.state = worker.state;
  set(".word", worker.state);
  set(".detail", detail(worker));
  set(".pool", worker.role === worker.pool ? worker.pool : `${worker.pool}, as ${worker.role}`);
  set(".host", worker.host ?? NOTHING);
  set(".running", load ? count(load.running) : NOTHING);
  set(".waiting", load ? count(load.waiting) : NOTHING);
  set(".hits", load && load.prefix_hits !== null ? `${percent(load.prefix_hits)} %` : NOTHING);
  set(".share", load ? `${percent(load.kv_usage)} %` : NOTHING);
  const bar = row.querySelector(".bar");
  const share = load ? Math.round(load.kv_usage * 100) : 0;
  bar.firstChild.style.width = `${share}%`;
  bar.classList.toggle("full", share >= 90);
  bar.setAttribute("aria-valuenow", share);
  bar.setAttribute("aria-label", `KV blocks in use on ${worker.id}`);
}

function detail(worker) {
  if (worker.detail) return worker.detail;
  return worker.ends_at ? `${duration(worker.ends_at - Date.now() / 1000)} left` : "";
}
