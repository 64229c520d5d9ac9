// A small line chart without axes: up to two series over the same seconds, the first one filled. Gaps stay gaps.

import { svg } from "./dom.js";

const WIDTH = 120;
const HEIGHT = 32;
const SECONDS = 120;

// `at` are Unix times; `series` lists of values or nulls beside them; `top` the value of the upper edge, if it is known.
export function sparkline(at, series, top = null) {
  const now = at.length ? at[at.length - 1] : 0;
  const most = top ?? Math.max(1e-9, ...series.flat().filter((value) => value !== null)) * 1.1;
  const x = (index) => WIDTH - ((now - at[index]) / SECONDS) * WIDTH;
  const y = (value) => HEIGHT - 1 - (Math.min(value, most) / most) * (HEIGHT - 2);
  const drawn = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  series.forEach((values, number) => {
    for (const [first, last] of stretches(values)) {
      const points = [];
      for (let index = first; index <= last; index += 1) {
        points.push(`${x(index).toFixed(2)},${y(values[index]).toFixed(2)}`);
      }
      if (number === 0) {
        const area = `M${x(first).toFixed(2)},${HEIGHT} L${points.join(" ")} L${x(last).toFixed(2)},${HEIGHT} Z`;
        drawn.append(svg("path", { class: "area", d: area }));
      }
      drawn.append(svg("polyline", { class: `line line-${number}`, points: points.join(" ") }));
    }
  });
  return drawn;
}

function stretches(values) {
  const found = [];
  let first = null;
  values.forEach((value, index) => {
    if (value === null) first = null;
    else if (first === null) found.push([(first = index), index]);
    else found[found.length - 1][1] = index;
  });
  return found;
}
