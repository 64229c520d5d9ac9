// The tiles: the newest numbers, and how they came about.

import { byId, element, setText } from "./dom.js";
import { count, milliseconds, percent } from "./format.js";
import { sparkline } from "./sparkline.js";

const latest = (values) => (values.length ? values[values.length - 1] : null);
const latency = (name) => (status) => {
  const [p50, unit] = milliseconds(latest(status.history[`${name}_p50_ms`]));
  const p90 = milliseconds(latest(status.history[`${name}_p90_ms`])).join(" ").trim();
  return [p50, unit, `median · p90 ${p90}`, [status.history[`${name}_p50_ms`], status.history[`${name}_p90_ms`]]];
};

// id, title, and what it shows: number, unit, second line, series, value of the chart's upper edge
const TILES = [
  ["ttft", "Time to first token", latency("ttft")],
  ["itl", "Inter-token latency", latency("itl")],
  ["tokens", "Throughput", ({ history }) => [
    count(latest(history.generated_tokens_per_s)),
    "tokens/s",
    `${count(latest(history.prompt_tokens_per_s))} prompt tokens/s`,
    [history.generated_tokens_per_s],
  ]],
  ["requests", "Sequences", ({ history }) => [
    count(latest(history.running)), "running", `${count(latest(history.waiting))} waiting`, [history.running, history.waiting],
  ]],
  ["kv", "KV cache in use", ({ history }) => [
    percent(latest(history.kv_usage)), "%", "mean of ready workers", [history.kv_usage], 1,
  ]],
  ["hits", "Prefix hits", ({ history }) => [
    percent(latest(history.prefix_hits)), "%", "of prompt tokens", [history.prefix_hits], 1,
  ]],
];

export function showLive(status) {
  const tiles = byId("tiles");
  if (!tiles.firstChild) tiles.append(...TILES.map(([id, title]) => tile(id, title)));
  for (const [id, , read] of TILES) {
    const [number, unit, second, series, top] = read(status);
    const shown = byId(`tile-${id}`);
    setText(shown.querySelector(".value"), number);
    setText(shown.querySelector(".unit"), unit);
    setText(shown.querySelector(".second"), second);
    shown.querySelector(".spark").replaceChildren(sparkline(status.history.at, series, top));
  }
}

function tile(id, title) {
  const number = element("p", {}, element("span", { class: "value" }), " ", element("span", { class: "unit" }));
  return element(
    "div",
    { class: "card tile", id: `tile-${id}`, role: "group", "aria-label": title },
    element("h3", {}, title),
    number,
    element("p", { class: "second quiet" }),
    element("div", { class: "spark" }),
  );
}
