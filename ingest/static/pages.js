"use strict";

// Every few seconds, while the page is visible, this script fetches the page again and replaces the parts marked
// data-live. It also copies numbers to the clipboard.
const EVERY = 5000;

async function renew() {
  if (document.hidden || !document.querySelector("[data-live]")) return;
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!answer.ok) return;
  const now = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = now.getElementById(old.id);
    // A part that has the keyboard focus stays, so that nobody loses their place; a mouse click does not count.
    const within = old.contains(document.activeElement) && document.activeElement.matches(":focus-visible");
    if (fresh && fresh.innerHTML !== old.innerHTML && !within) {
      old.replaceChildren(...fresh.childNodes);
    }
  }
}

async function copy(button) {
  const value = document.getElementById(button.dataset.copy);
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(value.textContent);
  } else {
    // Browsers give pages a clipboard over HTTPS and on localhost only.
    getSelection().selectAllChildren(value);
    document.execCommand("copy");
  }
  const label = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = label; }, 1500);
}

// Buttons inside live parts are replaced, so the listener is on the document.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(button);
});
setInterval(() => renew().catch(() => {}), EVERY);
