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

// Under the pointer, a chart shows the value of its line, which is read from the line itself.
const WIDTH = 1000;
const nearest = (points, x) => points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
document.addEventListener("pointermove", (event) => {
  const area = event.target.closest?.(".area");
  for (const other of document.querySelectorAll(".area.read")) if (other !== area) release(other);
  const drawn = area?.querySelector(".line")?.getAttribute("d");
  if (!drawn) return;
  const box = area.getBoundingClientRect();
  const points = drawn.slice(1).split("L").map((point) => point.split(" ").map(Number));
  const [x, y] = nearest(points, (WIDTH * (event.clientX - box.left)) / box.width);
  const [first, last, low, high, logarithmic] = JSON.parse(area.parentElement.dataset.reading);
  const height = area.viewBox.baseVal.height - 20;
  const value = low + (high - low) * (1 - y / height);
  const number = Number((logarithmic ? 10 ** value : value).toPrecision(3));
  const reading = area.closest(".chart").querySelector(".reading");
  reading.dataset.latest ??= reading.textContent;
  reading.textContent = `${number} at step ${Math.round(first + ((last - first) * x) / WIDTH)}`;
  area.querySelector(".cursor").setAttribute("d", `M${x} 0V${height}`);
  area.classList.add("read");
});
function release(area) {
  const reading = area.closest(".chart").querySelector(".reading");
  reading.textContent = reading.dataset.latest;
  area.querySelector(".cursor").setAttribute("d", "");
  area.classList.remove("read");
}
