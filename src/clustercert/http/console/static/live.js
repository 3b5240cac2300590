// Updates the live parts of a page (`live` in macros.html) every 15 seconds, and when its tab is shown again.
"use strict";

function keepUpToDate(part) {
  const address = new URL(part.dataset.live, location).href;
  // Parses the page without running its scripts. DOMParser would need a policy for Trusted Types.
  const request = new XMLHttpRequest();
  let isWaiting = false;

  function update() {
    if (document.hidden || isWaiting) return;
    isWaiting = true;
    request.open("GET", address);
    request.responseType = "document";
    request.timeout = 10000;
    request.setRequestHeader("Live-Update", "1");
    request.send();
  }

  request.addEventListener("loadend", () => {
    isWaiting = false;
    // Another address means a redirect to the login: the session has ended.
    const isPage = request.status === 200 && request.responseURL === address;
    const fresh = isPage && request.response?.getElementById(part.id);
    if (fresh) replaceAndKeepFocus(part, fresh);
    else part.querySelector("[data-outdated]").removeAttribute("hidden");
  });
  setInterval(update, 15000);
  document.addEventListener("visibilitychange", update);
}

function replaceAndKeepFocus(part, fresh) {
  const focused = document.activeElement;
  replaceChanges(part, fresh);
  if (focused.isConnected) return;
  const links = [...part.querySelectorAll("a")];
  links.find((each) => each.href === focused.href)?.focus({ preventScroll: true });
}

// Leaves alone what is equal, so that it keeps its scroll position and what is selected in it.
function replaceChanges(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (!old.cloneNode().isEqualNode(fresh.cloneNode())) return old.replaceWith(fresh);
  const [before, after] = [[...old.childNodes], [...fresh.childNodes]];
  if (before.length !== after.length) return old.replaceChildren(...after);
  before.forEach((each, index) => replaceChanges(each, after[index]));
}

document.querySelectorAll("[data-live]").forEach(keepUpToDate);
