// The page: which view is shown, and the look at the daemon every other second while it is.

import { choose, offerModels, startChat } from "./chat.js";
import { rememberKey } from "./daemon.js";
import { byId } from "./elements.js";
import { askOwner, showDevices } from "./pairing.js";
import { present, pull, shelf, showLoaded, showMachine, showShelf, showWork } from "./overview.js";

const EVERY_MS = 2000;
const SHELF_EVERY = 10;
let looks = 0;

function show(view) {
  for (const name of ["overview", "chat"]) byId(name).hidden = name !== view;
  for (const button of document.querySelectorAll("nav button")) {
    button.setAttribute("aria-pressed", String(button.dataset.view === view));
  }
}

async function refresh(withShelf = true) {
  try {
    const found = await present();
    const canManage = found.activity.can_manage;
    byId("key-form").hidden = true;
    showMachine(found.activity);
    showLoaded(found.loaded, canManage, refresh);
    showWork(found.queue, found.activity.conversions);
    if (canManage) await showDevices(refresh);
    if (!withShelf) return;
    const models = await shelf();
    showShelf(models, canManage, { refresh, chat: (name) => { show("chat"); choose(name); } });
    offerModels(models);
  } catch (error) {
    looks = 0;
    const wantsKey = error.status === 401;
    byId("key-form").hidden = !wantsKey;
    byId("machine").textContent = wantsKey ? "A key is needed." : `No answer: ${error.message}`;
  }
}

async function keepLooking() {
  if (!document.hidden) await refresh(looks++ % SHELF_EVERY === 0);
  setTimeout(keepLooking, EVERY_MS);
}

for (const button of document.querySelectorAll("nav button")) {
  button.addEventListener("click", () => show(button.dataset.view));
}
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  rememberKey(byId("key").value.trim());
  byId("key").value = "";
  refresh();
});
byId("pair").addEventListener("click", () => askOwner(refresh));
byId("pull-form").addEventListener("submit", (event) => {
  event.preventDefault();
  pull(byId("pull-name").value.trim(), refresh);
});
startChat();
keepLooking();
