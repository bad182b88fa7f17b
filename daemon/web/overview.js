// What is in memory, what is under way, what is on the shelf.

import { lines, read, send } from "./daemon.js";
import { action, byId, element, fill, row } from "./elements.js";
import { bytes, duration, leaving, share } from "./words.js";

export function showMachine(activity) {
  const devices = activity.runtimes.map((one) => `${one.name} ${one.version} (${one.devices.join(", ")})`);
  byId("machine").textContent = [
    activity.name,
    `version ${activity.version}`,
    `up ${duration(activity.uptime_seconds)}`,
    ...devices,
    `${bytes(activity.free_bytes)} of ${bytes(activity.memory_bytes)} free`,
    `${activity.completion_ids.toLocaleString()} tokens answered`,
  ].join(" · ");
  const troubles = [activity.problem, ...activity.alarms].filter(Boolean);
  byId("alarm").textContent = troubles.join("\n");
  byId("alarm").hidden = troubles.length === 0;
}

export function showLoaded(models, canManage, refresh) {
  const unload = (name) => async () => {
    await send("POST", "/api/generate", { model: name, keep_alive: 0 });
    await refresh();
  };
  fill(byId("loaded"), models.map((model) => {
    const name = element("span", { textContent: model.name, title: model.runs_on });
    const button = canManage ? action("Unload", unload(model.name)) : "";
    return row(name, model.serving, bytes(model.size), String(model.context_length), leaving(model.expires_at), button);
  }));
}

export function showWork(queue, conversions) {
  const waiting = queue.map((one) => element("li", {
    textContent: `${one.position}. ${one.name} for ${one.client}: waits ${duration(one.age_seconds)} (${one.waits_for})`,
  }));
  const converting = conversions.map((job) => {
    const text = `${job.names.join(", ") || job.source.slice(0, 12)} → ${job.variant}: ${job.phase}`;
    const bar = element("progress", { max: 1, value: share(job.done, job.total) });
    return element("li", {}, text, bar);
  });
  fill(byId("work"), [...waiting, ...converting]);
}

export function showShelf(models, canManage, { refresh, chat }) {
  const remove = (name) => async () => {
    if (!confirm(`Remove ${name} from the disk?`)) return;
    await send("DELETE", "/api/delete", { model: name });
    await refresh();
  };
  fill(byId("shelf"), models.map((model) => {
    const { parameter_size: parameters, quantization_level: level } = model.details;
    const can = model.capabilities ?? [];
    const buttons = element("span");
    if (can.length === 0 || can.includes("completion")) buttons.append(action("Chat", () => chat(model.name)));
    if (canManage) buttons.append(" ", action("Remove", remove(model.name)));
    return row(model.name, parameters, level, bytes(model.size), can.join(", "), buttons);
  }));
  byId("pull-form").hidden = !canManage;
}

export async function pull(name, refresh) {
  const [state, bar] = [byId("pull-state"), byId("pull-bar")];
  bar.hidden = false;
  try {
    for await (const line of lines("/api/pull", { model: name })) {
      state.textContent = line.status;
      bar.value = share(line.completed ?? 0, line.total ?? 0);
    }
    byId("pull-name").value = "";
    await refresh();
  } catch (error) {
    state.textContent = error.message;
  } finally {
    bar.hidden = true;
  }
}

export async function present() {
  const [activity, running, queue] = await Promise.all(["/api/activity", "/api/ps", "/api/queue"].map(read));
  return { activity, loaded: running.models, queue: queue.waiting };
}

// Every manifest is read for it, so it is asked for less often.
export async function shelf() {
  return (await read("/api/tags")).models;
}
