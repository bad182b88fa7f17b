// What the page says to the daemon. The key stays in this tab and is sent to this daemon only.

const KEY = "hearth-key";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function rememberKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function answered(path, options = {}) {
  const headers = { ...(options.body ? { "Content-Type": "application/json" } : {}) };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, { ...options, headers });
  if (!response.ok) throw new Refused(response.status, await reason(response));
  return response;
}

async function reason(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error || text;
  } catch {
    return text || `the daemon answered with status ${response.status}`;
  }
}

export async function read(path) {
  return (await answered(path)).json();
}

export async function send(method, path, body) {
  return answered(path, { method, body: JSON.stringify(body) });
}

// Each line of an NDJSON answer as an object. An `error` line ends it as an error.
export async function* lines(path, body, signal) {
  const response = await answered(path, { method: "POST", body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    const parts = (rest + (value ?? "")).split("\n");
    rest = done ? "" : parts.pop();
    for (const part of parts) {
      if (!part.trim()) continue;
      const line = JSON.parse(part);
      if (line.error) throw new Refused(response.status, line.error);
      yield line;
    }
    if (done) return;
  }
}
