"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const hidden = new Set();
  let scale = "linear";
  let shown = page.samples ? page.samples.steps.at(-1) : null;
  document.documentElement.classList.add("js");

  const round = new Intl.NumberFormat("en", {maximumSignificantDigits: 4, useGrouping: false});
  const exponent = new Intl.NumberFormat("en", {maximumSignificantDigits: 3, notation: "scientific"});
  const written = (value) => (value !== 0 && Math.abs(value) < 1e-3 ? exponent : round).format(value).replace("E", "e");

  // The data come later, and an axis without any is nothing to warn of: logLevel 1 lets errors through.
  const options = {mode: "vega-lite", renderer: "svg", actions: false, tooltip: false, defaultStyle: false, logLevel: 1};

  // Curves

  class Chart {
    constructor(plot) {
      this.plot = plot;
      this.canvas = plot.firstElementChild;
      this.readout = plot.nextElementSibling;
      this.chart = page.charts[plot.dataset.chart];
      this.first = Number(plot.ariaValueMin);
      this.last = Number(plot.ariaValueMax);
      this.read(null);
      this.draw();
      plot.addEventListener("pointermove", (event) => this.read(this.stepAt(event)));
      plot.addEventListener("pointerdown", (event) => this.read(this.stepAt(event)));
      plot.addEventListener("pointerleave", () => this.read(null));
      plot.addEventListener("blur", () => this.read(null));
      plot.addEventListener("keydown", (event) => this.key(event));
    }

    get series() {
      return this.chart.series.filter((each) => !hidden.has(each.run));
    }

    rows(name) {
      const positive = this.scale === "log";
      return this.series.flatMap(({run, [name]: [steps, values]}) =>
        steps.map((step, index) => ({run, step, value: values[index]})).filter((row) => !positive || row.value > 0));
    }

    async draw() {
      this.scale = this.chart.log ? scale : this.chart.zero ? "zero" : "linear";
      const wanted = this.scale;
      const embedded = await vegaEmbed(this.canvas, page.specs[wanted], options);
      if (wanted !== this.scale) return embedded.finalize();  // it was switched meanwhile
      this.view = embedded.view;
      this.fill();
    }

    fill() {
      if (!this.view) return;
      for (const name of ["raw", "smooth", "points"]) this.view.data(name, this.rows(name));
      this.point();
    }

    within(step) {
      return step !== null && step >= this.first && step <= this.last;
    }

    point() {
      this.view?.signal("shown", this.within(shown) ? shown : null).signal("reading", this.cursor).runAsync();
    }

    stepAt(event) {
      if (!this.view) return null;
      const left = this.canvas.querySelector("svg").getBoundingClientRect().left + this.view.origin()[0];
      const step = Math.round(this.view.scale("x").invert(event.clientX - left));
      return Math.min(this.last, Math.max(this.first, step));
    }

    key(event) {
      const stride = Math.max(1, Math.round((this.last - this.first) / 100));
      const moves = {ArrowRight: stride, ArrowUp: stride, ArrowLeft: -stride, ArrowDown: -stride,
                     PageUp: 10 * stride, PageDown: -10 * stride, Home: -Infinity, End: Infinity};
      if (!(event.key in moves)) return;
      event.preventDefault();
      this.read(Math.min(this.last, Math.max(this.first, (this.cursor ?? this.last) + moves[event.key])));
    }

    read(cursor) {
      this.cursor = cursor;
      const step = cursor ?? this.last;
      const readings = this.series.flatMap(({run, smooth: [steps, values]}) => {
        if (!steps.length || step < steps[0] || step > steps.at(-1)) return [];
        const index = steps.reduce((best, each, i) => (Math.abs(each - step) < Math.abs(steps[best] - step) ? i : best), 0);
        return [[run, written(values[index])]];
      });
      this.readout.replaceChildren(`step ${step}\u2002`, ...readings.map(([run, value]) => this.entry(run, value)));
      this.plot.ariaValueNow = String(step);
      this.plot.ariaValueText = [`step ${step}`, ...readings.map((pair) => pair.join(" "))].join(", ");
      this.point();
    }

    entry(run, value) {
      const swatch = Object.assign(document.createElement("i"), {className: "swatch"});
      swatch.style.setProperty("--colour", `var(--run-${page.runs.indexOf(run)})`);
      const span = document.createElement("span");
      span.append(swatch, page.runs.length > 1 ? `${run} ${value}` : value);
      return span;
    }
  }

  const charts = [...document.querySelectorAll(".plot")].map((plot) => new Chart(plot));
  for (const cell of document.querySelectorAll("[data-interval]")) {
    vegaEmbed(cell, page.intervals[cell.dataset.interval], options);
  }
  for (const radio of document.querySelectorAll("input[name=scale]")) {
    radio.addEventListener("change", () => {
      scale = radio.value;
      charts.filter((chart) => chart.chart.log).forEach((chart) => chart.draw());
    });
  }
  for (const box of document.querySelectorAll("input[name=run]")) {
    box.addEventListener("change", () => {
      box.checked ? hidden.delete(box.value) : hidden.add(box.value);
      charts.forEach((chart) => (chart.fill(), chart.read(null)));
    });
  }

  // Samples

  const slider = document.getElementById("step");
  if (!slider) return;
  const steps = page.samples.steps;
  const rows = [...document.querySelectorAll("[data-row]")].map((element, index) => {
    const row = page.samples.rows[index];
    const last = [...element.querySelectorAll("img")].map((image) => image.src);
    return {element, steps: row.steps, uris: [...row.uris, last], at: element.parentElement.querySelector(".at")};
  });

  function nearest(candidates, step) {
    return candidates.reduce((best, each, i) => (Math.abs(each - step) < Math.abs(candidates[best] - step) ? i : best), 0);
  }

  function show(row, step) {
    const index = nearest(row.steps, step);
    const images = [...row.element.querySelectorAll("img")];
    row.at.textContent = `step ${row.steps[index]}`;
    images.forEach((image, number) => {
      const uri = row.uris[index][number];
      image.hidden = !uri;
      if (uri) image.src = uri;
      image.alt = `${row.element.dataset.alt}, step ${row.steps[index]}, image ${number + 1}`;
    });
  }

  const [earlier, later] = ["earlier", "later"].map((id) => document.getElementById(id));
  function move() {
    shown = steps[Number(slider.value)];
    document.getElementById("shown").textContent = shown;
    slider.setAttribute("aria-valuetext", `step ${shown}`);
    earlier.disabled = slider.value === slider.min;
    later.disabled = slider.value === slider.max;
    rows.forEach((row) => show(row, shown));
    charts.forEach((chart) => chart.point());
  }

  slider.addEventListener("input", move);
  for (const [button, by] of [[earlier, -1], [later, 1]]) {
    button.addEventListener("click", () => {
      slider.value = Number(slider.value) + by;
      move();
    });
  }
  slider.value = slider.max;
  move();
})();
