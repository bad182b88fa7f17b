// A device that asks for a key of its own, and the owner who compares codes.

import { read, rememberKey, send } from "./daemon.js";
import { action, byId, element, fill, row } from "./elements.js";

const EVERY_MS = 2000;

function spaced(code) {
  return `${code.slice(0, 3)} ${code.slice(3)}`;
}

function wait() {
  return new Promise((resolve) => setTimeout(resolve, EVERY_MS));
}

// Until the owner has said yes or no, or five minutes are over.
export async function askOwner(refresh) {
  const [button, state] = [byId("pair"), byId("pair-state")];
  button.disabled = true;
  try {
    const asked = await (await send("POST", "/api/pair", { name: "browser" })).json();
    state.textContent = `Code ${spaced(asked.code)}: the owner approves it on this page, or with hearth key approve ${asked.code}`;
    for (;;) {
      await wait();
      const claim = await (await send("POST", "/api/pair/claim", { ticket: asked.ticket })).json();
      if (claim.status !== "approved") continue;
      rememberKey(claim.key);
      state.textContent = "";
      await refresh();
      return;
    }
  } catch (error) {
    state.textContent = error.message;
  } finally {
    button.disabled = false;
  }
}

export async function showDevices(refresh) {
  const { devices } = await read("/api/hearth/pairs");
  byId("devices-section").hidden = devices.length === 0;
  fill(byId("devices"), devices.map((device) => {
    const approve = async () => {
      const name = prompt(`Name of the key for ${device.name} at ${device.address}`, device.name);
      if (!name) return;
      try {
        await send("POST", "/api/hearth/pairs/approve", { code: device.code, name });
      } catch (error) {
        alert(error.message);
      }
      await refresh();
    };
    const refuse = async () => {
      await send("DELETE", `/api/hearth/pairs/${device.code}`, {});
      await refresh();
    };
    const buttons = element("span", {}, action("Approve", approve), " ", action("Refuse", refuse));
    return row(spaced(device.code), device.name, device.address, buttons);
  }));
}
