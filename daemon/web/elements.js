// Elements are made here and nowhere else; texts are always text, never markup.

export function byId(id) {
  return document.getElementById(id);
}

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export function row(...cells) {
  return element("tr", {}, ...cells.map((cell) => element("td", {}, cell)));
}

export function action(label, run) {
  const button = element("button", { type: "button", textContent: label });
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await run();
    } finally {
      button.disabled = false;
    }
  });
  return button;
}

function appearance(item) {
  return item.textContent + (item.querySelector("progress")?.value ?? "");
}

// Replaces what a list shows, and shows the sentence below it where there is nothing. What looks the
// same stays, so that nothing is pulled away from under a finger.
export function fill(list, items) {
  const looks = items.map(appearance).join("\n");
  if (list.dataset.looks === looks) return;
  list.dataset.looks = looks;
  list.replaceChildren(...items);
  const table = list.closest("table") ?? list;
  table.hidden = items.length === 0;
  const sentence = table.nextElementSibling;
  if (sentence?.classList.contains("empty")) sentence.hidden = items.length > 0;
}
