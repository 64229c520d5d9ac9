// Numbers as people read them.

export const NOTHING = "–";

export function milliseconds(value) {
  if (value === null || value === undefined) return [NOTHING, ""];
  if (value >= 1000) return [(value / 1000).toFixed(value >= 10000 ? 0 : 1), "s"];
  return [value.toFixed(value >= 10 ? 0 : 1), "ms"];
}

export function count(value) {
  if (value === null || value === undefined) return NOTHING;
  if (value >= 99950) return `${(value / 1000).toFixed(0)}k`;
  if (value >= 9995) return `${(value / 1000).toFixed(1)}k`;
  return value > 0 && value < 10 ? value.toFixed(1).replace(/\.0$/, "") : value.toFixed(0);
}

export function percent(share) {
  return share === null || share === undefined ? NOTHING : (share * 100).toFixed(0);
}

export function duration(seconds) {
  const minutes = Math.floor(Math.max(0, seconds) / 60);
  const hours = Math.floor(minutes / 60);
  if (hours >= 24) return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min` : `${Math.floor(Math.max(0, seconds))} s`;
}
