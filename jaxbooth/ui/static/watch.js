// The page of a run: the slider's words, and what a part keeps when it is drawn again. Everything else is htmx.
"use strict";

const NEAR = 24; // pixels from a log's end that still follow it

// The slider is drawn again with its part, so its events are heard here.
document.addEventListener("input", (event) => {
  if (event.target.id !== "at") return;
  const step = event.target.closest("[data-steps]").dataset.steps.split(",")[event.target.value];
  document.getElementById("shown-step").textContent = step;
  event.target.setAttribute("aria-valuetext", `step ${step}`);
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-by]");
  if (!button) return;
  const slider = document.getElementById("at");
  const before = slider.value;
  slider.valueAsNumber += Number(button.dataset.by);
  if (slider.value !== before) slider.dispatchEvent(new Event("input", { bubbles: true }));
});

// Tables stay open, and a log stays where it was read; one that stood at its end follows.
const kept = new WeakMap();
document.body.addEventListener("htmx:beforeSwap", (event) => {
  const part = event.detail.target;
  const log = part.querySelector(".log");
  kept.set(part, {
    open: [...part.querySelectorAll("details[open][id]")].map((details) => details.id),
    top: log && log.scrollTop,
    follows: !log || log.scrollHeight - log.scrollTop - log.clientHeight < NEAR,
  });
});
document.body.addEventListener("htmx:afterSwap", (event) => {
  const before = kept.get(event.detail.target);
  if (!before) return;
  for (const id of before.open) document.getElementById(id)?.setAttribute("open", "");
  const log = event.detail.target.querySelector(".log");
  if (log) log.scrollTop = before.follows ? log.scrollHeight : before.top;
});
for (const log of document.querySelectorAll(".log")) log.scrollTop = log.scrollHeight;
