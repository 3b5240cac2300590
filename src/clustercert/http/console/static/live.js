// Decides when htmx updates the live parts of a page (`live` in macros.html), and what it must not put there.
"use strict";

function markOutdated(part) {
  part.querySelector("[data-outdated]")?.removeAttribute("hidden");
}

// A tab that nobody sees is updated when it is shown again.
document.addEventListener("htmx:before:request", (event) => {
  if (document.hidden) event.preventDefault();
});

// A redirect leads to the login page: the session has ended.
document.addEventListener("htmx:before:swap", (event) => {
  const response = event.detail.ctx.response.raw;
  if (response.ok && !response.redirected) return;
  event.preventDefault();
  markOutdated(event.target);
});

document.addEventListener("htmx:error", (event) => markOutdated(event.target));
