// Turns the server's events into htmx triggers, and shows when the server is gone. Everything else is htmx.
"use strict";

const connection = document.getElementById("connection");

function listen() {
  const source = new EventSource(document.body.dataset.events);
  source.addEventListener("change", (event) => htmx.trigger(document.body, `changed-${event.data}`));
  source.addEventListener("open", () => { connection.textContent = ""; });
  source.addEventListener("error", () => {
    connection.textContent = "The server does not answer; trying again.";
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  });
}

// What the server refuses is shown as a notice and does not take the place of what was asked for.
document.body.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.xhr.status < 400) return;
  event.detail.shouldSwap = true;
  event.detail.isError = false;
  event.detail.target = document.getElementById("notices");
  event.detail.swapOverride = "innerHTML";
});
document.body.addEventListener("htmx:beforeRequest", (event) => {
  if (event.detail.requestConfig.verb !== "get") document.getElementById("notices").replaceChildren();
});
document.body.addEventListener("htmx:sendError", () => {
  connection.textContent = "The server does not answer; nothing was changed.";
});

listen();
