// One conversation with one model. It lives in this page only: leaving it forgets it.

import { lines } from "./daemon.js";
import { byId, element } from "./elements.js";
import { duration } from "./words.js";

let history = [];
let images = [];
let running = null;
let known = new Map();

export function offerModels(models) {
  const talking = models.filter((model) => !model.capabilities || model.capabilities.includes("completion"));
  const isSame = talking.length === known.size && talking.every((model) => known.has(model.name));
  known = new Map(talking.map((model) => [model.name, model]));
  if (isSame) return;
  const choice = byId("chat-model");
  const chosen = choice.value;
  choice.replaceChildren(...[...known.keys()].map((name) => element("option", { value: name, textContent: name })));
  if (known.has(chosen)) choice.value = chosen;
  offerImages();
}

export function choose(name) {
  byId("chat-model").value = name;
  offerImages();
  byId("question").focus();
}

// Only models with eyes are given images.
function offerImages() {
  const model = known.get(byId("chat-model").value);
  const sees = model?.capabilities?.includes("vision") ?? false;
  byId("attach-label").hidden = !sees;
  if (!sees) attach([]);
}

function attach(files) {
  images = files;
  byId("attached").replaceChildren(
    ...files.map((file) => element("li", {}, element("img", { src: file.url, alt: file.name }))),
  );
}

function readFile(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve({ name: file.name, url: reader.result, data: reader.result.split(",")[1] });
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

function bubble(role, text, pictures = []) {
  const made = element("div", { className: `message ${role}` });
  made.append(...pictures.map((one) => element("img", { src: one.url, alt: one.name })));
  const words = element("span", { textContent: text });
  made.append(words);
  byId("messages").append(made);
  made.scrollIntoView({ block: "end" });
  return { made, words };
}

function thoughts(made, words) {
  const text = element("span");
  made.insertBefore(element("details", {}, element("summary", { textContent: "Thoughts" }), text), words);
  return text;
}

async function ask(question) {
  const pictures = images;
  attach([]);
  byId("attach").value = "";
  bubble("user", question, pictures);
  const message = { role: "user", content: question };
  if (pictures.length) message.images = pictures.map((one) => one.data);
  const talk = history;
  talk.push(message);
  const { made, words } = bubble("assistant", "");
  running = new AbortController();
  setRunning(true);
  const answer = { role: "assistant", content: "" };
  try {
    await follow(talk, answer, made, words);
    talk.push(answer);
  } catch (error) {
    const isStopped = error.name === "AbortError";
    if (isStopped && answer.content) talk.push(answer);
    else talk.pop();
    if (!isStopped) {
      made.classList.add("failed");
      words.textContent += `${answer.content ? "\n" : ""}${error.message}`;
    }
  } finally {
    running = null;
    setRunning(false);
  }
}

async function follow(talk, answer, made, words) {
  const body = { model: byId("chat-model").value, messages: talk };
  let thinking = null;
  for await (const line of lines("/api/chat", body, running.signal)) {
    if (line.message?.thinking) {
      thinking ??= thoughts(made, words);
      thinking.textContent += line.message.thinking;
    }
    answer.content += line.message?.content ?? "";
    words.textContent = answer.content;
    if (line.done) byId("chat-state").textContent = figures(line);
  }
}

function figures(line) {
  const seconds = (line.eval_duration ?? 0) / 1e9;
  const rate = seconds > 0 ? ` · ${(line.eval_count / seconds).toFixed(1)} tokens/s` : "";
  return `${line.prompt_eval_count ?? 0} tokens in, ${line.eval_count ?? 0} out${rate} · ${duration(line.total_duration / 1e9)}`;
}

function setRunning(isRunning) {
  byId("send").hidden = isRunning;
  byId("stop").hidden = !isRunning;
  if (isRunning) byId("chat-state").textContent = "…";
}

export function startChat() {
  const form = byId("chat-form");
  const question = byId("question");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = question.value.trim();
    if (!text || running) return;
    question.value = "";
    ask(text);
  });
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("chat-new").addEventListener("click", () => {
    running?.abort();
    history = [];
    byId("messages").replaceChildren();
    byId("chat-state").textContent = "";
  });
  byId("chat-model").addEventListener("change", offerImages);
  byId("attach").addEventListener("change", async (event) => {
    attach(await Promise.all([...event.target.files].map(readFile)));
  });
}
