"use strict";

// What a page says is brought up to date every few seconds while somebody looks: the parts marked data-live are taken
// from the page as the server would send it now. Copying a number is all that is left to do here.
const EVERY = 5000;

async function renew() {
  if (document.hidden || !document.querySelector("[data-live]")) return;
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!answer.ok) return;
  const now = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = now.getElementById(old.id);
    // Whoever is within a part with the keyboard is not thrown out of it; a click only leaves its focus there.
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
    // Pages have a clipboard over HTTPS only, and from this very machine.
    getSelection().selectAllChildren(value);
    document.execCommand("copy");
  }
  const words = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = words; }, 1500);
}

// Parts come and go, and buttons with them.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(button);
});
setInterval(() => renew().catch(() => {}), EVERY);
