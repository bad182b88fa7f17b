// Numbers and times for people.

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function bytes(count) {
  let unit = 0;
  while (count >= 1000 && unit < UNITS.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${count.toFixed(count < 10 && unit ? 1 : 0)} ${UNITS[unit]}`;
}

export function duration(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  if (seconds < 2 * 86400) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

// When a model leaves the memory; years ahead mean that it stays.
export function leaving(moment, now = Date.now()) {
  const seconds = (Date.parse(moment) - now) / 1000;
  if (seconds > 365 * 86400) return "stays";
  return seconds <= 0 ? "now" : `in ${duration(seconds)}`;
}

export function share(done, total) {
  return total > 0 ? Math.min(1, done / total) : 0;
}
