// Asks for the status once a second while somebody looks, and for a key where the endpoint wants one.

import { getStatus, keepKey, storedKey } from "./api.js";
import { serveModel, startChat } from "./chat.js";
import { byId, setText, show } from "./dom.js";
import { duration } from "./format.js";
import { showLive } from "./live.js";
import { showWorkers } from "./workers.js";

const INTERVAL_MS = 1000;
const asksForKey = document.querySelector("meta[name=keys]").content === "asked";
let timer = null;

async function look() {
  clearTimeout(timer);
  if (asksForKey && !storedKey()) {
    locked();
    return;
  }
  try {
    showStatus(await getStatus());
  } catch (error) {
    if (error.status === 401) {
      refused(error.message);
      return;
    }
    setPhase("unreachable");
    notice(`${error.message} Trying again.`);
  }
  if (!document.hidden) timer = setTimeout(look, INTERVAL_MS);
}

function showStatus(status) {
  document.title = `${status.name} · hpcserve`;
  setText(byId("name"), status.name);
  setPhase(status.phase);
  setText(byId("about"), about(status));
  notice([status.detail, ...status.warnings].filter(Boolean).join("\n"));
  show(byId("dashboard"), Boolean(status.dashboard));
  if (status.dashboard) byId("dashboard").href = status.dashboard;
  serveModel(status.model);
  if (status.max_model_len) byId("max-tokens").max = status.max_model_len;
  showLive(status);
  showWorkers(status);
}

function about(status) {
  const pools = Object.entries(status.wanted).map(([pool, size]) => `${size} ${pool}`);
  const parts = [status.model, `${status.mode}, ${pools.join(" + ")} on ${status.cluster}`, `${status.policy} router`];
  if (status.started_at) parts.push(`up ${duration(Date.now() / 1000 - status.started_at)}`);
  return parts.filter(Boolean).join(" · ");
}

function setPhase(phase) {
  setText(byId("phase"), phase);
  byId("phase").dataset.phase = phase;
}

function notice(text) {
  setText(byId("notice"), text);
  show(byId("notice"), text !== "");
}

function locked() {
  setPhase("locked");
  notice("");
  serveModel(null);
  askForKey();
}

function refused(message) {
  keepKey(null);
  locked();
  askForKey(`This key was not accepted: ${message}`);
}

function askForKey(error = "") {
  setText(byId("key-error"), error);
  show(byId("key-error"), error !== "");
  byId("key").value = "";
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
  byId("key").focus();
}

function startKeys() {
  show(byId("key-button"), asksForKey);
  byId("key-button").addEventListener("click", () => askForKey());
  byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    keepKey(byId("key").value.trim());
    byId("key").value = "";
    byId("key-dialog").close();
    look();
  });
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) look();
});
startKeys();
startChat(refused);
look();
