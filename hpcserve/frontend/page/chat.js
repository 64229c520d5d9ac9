// A conversation of several turns with the served model. It lives in this page, and is forgotten with it.

import { ApiError, streamChat } from "./api.js";
import { byId, element, setText, show } from "./dom.js";
import { milliseconds } from "./format.js";

const turns = []; // of the conversation so far, as the API has them
let model = null;
let running = null; // the AbortController of the answer that comes in
let conversation = 0; // counts conversations: an answer to an earlier one is not added to the next

// `onUnauthorized` is called when the key is not good any more.
export function startChat(onUnauthorized) {
  byId("chat-form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(onUnauthorized);
  });
  byId("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("chat-form").requestSubmit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("new-chat").addEventListener("click", forget);
  update();
}

export function serveModel(name) {
  model = name;
  setText(byId("chat-model"), name ?? "");
  update();
}

async function ask(onUnauthorized) {
  const text = byId("question").value.trim();
  if (!text || running || model === null || !byId("temperature").reportValidity() || !byId("max-tokens").reportValidity()) {
    return;
  }
  const asked = conversation;
  const question = { role: "user", content: text };
  byId("question").value = "";
  add("user", text);
  const answer = add("assistant", "");
  running = new AbortController();
  update();
  const content = await receive(answer, [...turns, question], onUnauthorized);
  running = null;
  if (asked === conversation) {
    if (content) turns.push(question, { role: "assistant", content });
    else if (!byId("question").value) byId("question").value = text;
  }
  update();
  byId("question").focus();
}

// Shows an answer as it comes, and returns its text: empty if there is none that a next turn could follow.
async function receive(answer, messages, onUnauthorized) {
  const started = performance.now();
  const body = answer.querySelector(".text");
  let [first, usage, content, reason] = [null, null, "", null];
  answer.classList.add("coming");
  byId("log").setAttribute("aria-busy", "true");
  try {
    for await (const chunk of streamChat(request(messages), running.signal)) {
      usage = chunk.usage ?? usage;
      const choice = chunk.choices[0];
      if (!choice) continue;
      reason = choice.finish_reason ?? reason;
      const { content: piece, reasoning_content: thought } = choice.delta;
      if (piece || thought) first ??= performance.now();
      if (thought) follow(() => reasoning(answer).append(thought));
      if (piece) follow(() => body.append(piece));
      content += piece ?? "";
    }
  } catch (error) {
    if (error.name === "AbortError") reason = "stopped";
    else fail(answer, error, onUnauthorized);
  } finally {
    answer.classList.remove("coming");
    byId("log").removeAttribute("aria-busy");
  }
  follow(() => setText(answer.querySelector(".numbers"), numbers(started, first, usage, reason)));
  return content;
}

function request(messages) {
  const system = byId("system").value.trim();
  const temperature = byId("temperature").valueAsNumber;
  const most = byId("max-tokens").valueAsNumber;
  return {
    model,
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    ...(Number.isNaN(temperature) ? {} : { temperature }),
    ...(Number.isNaN(most) ? {} : { max_tokens: most }),
  };
}

function numbers(started, first, usage, reason) {
  const parts = [];
  if (first !== null) parts.push(`first token after ${milliseconds(first - started).join(" ")}`);
  if (usage) {
    const seconds = (performance.now() - first) / 1000;
    parts.push(`${usage.completion_tokens} tokens`);
    if (usage.completion_tokens > 1) parts.push(`${((usage.completion_tokens - 1) / seconds).toFixed(0)} tokens/s`);
    const cached = usage.prompt_tokens_details?.cached_tokens;
    if (cached) parts.push(`${cached} of ${usage.prompt_tokens} prompt tokens cached`);
  }
  if (reason === "stopped") parts.push("stopped");
  if (reason === "length") parts.push("cut off at max tokens");
  return parts.join(" · ");
}

function fail(answer, error, onUnauthorized) {
  const message = error instanceof ApiError ? error.message : `This page failed: ${error.message}`;
  follow(() => answer.append(element("p", { class: "error", role: "alert" }, message)));
  if (error.status === 401) onUnauthorized(message);
}

function add(role, text) {
  const shown = element("div", { class: `turn ${role}` }, element("p", { class: "hidden" }, role === "user" ? "You:" : "Model:"));
  shown.append(element("div", { class: "text" }, text), element("p", { class: "numbers quiet" }));
  show(byId("chat-empty"), false);
  byId("log").append(shown);
  byId("log").scrollTop = byId("log").scrollHeight;
  return shown;
}

function reasoning(answer) {
  const known = answer.querySelector(".reasoning div");
  if (known) return known;
  const text = element("div");
  const shown = element("details", { class: "reasoning", open: "" }, element("summary", {}, "Reasoning"), text);
  answer.querySelector(".text").before(shown);
  return text;
}

// Keeps the end in sight while the text grows, unless the reader has scrolled up.
function follow(change) {
  const log = byId("log");
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  change();
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

function forget() {
  running?.abort();
  conversation += 1;
  turns.length = 0;
  for (const turn of byId("log").querySelectorAll(".turn")) turn.remove();
  show(byId("chat-empty"), true);
  byId("question").focus();
}

function update() {
  byId("send").disabled = model === null;
  show(byId("send"), running === null);
  show(byId("stop"), running !== null);
}
