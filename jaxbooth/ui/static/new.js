// The page of a new run: asks for checks while you type, uploads photos, searches the settings, remembers the form.
"use strict";

const WAIT = 400; // milliseconds without a key before the form is checked
const STATE = `jaxbooth-new${location.search}`;
const byId = (id) => document.getElementById(id);
const seen = { sheet: null, plan: null };
let timer = 0, plans = 0, isForgotten = false;

function controls() {
  return [...byId("new").elements].filter((each) => each.name);
}

function formValues() {
  const values = {};
  for (const [name, value] of new FormData(byId("new"))) (values[name] ||= []).push(value);
  return values;
}

function check(delay = WAIT) {
  clearTimeout(timer);
  timer = setTimeout(() => {
    if (!isForgotten) sessionStorage.setItem(STATE, JSON.stringify(formValues()));
    htmx.trigger("#new", "check");
  }, delay);
}

// --- what is changed -------------------------------------------------------------------------------------------------

function textOf(setting) {
  const inputs = [...setting.querySelectorAll("input:not([type=hidden]), select, textarea")];
  if (inputs[0].type !== "checkbox") return inputs[0].value.trim();
  if (inputs.length === 1) return String(inputs[0].checked);
  return inputs.filter((each) => each.checked).map((each) => each.value).join("\n") || "none";
}

function isChanged(setting) {
  const text = textOf(setting), before = setting.dataset.default;
  return text !== before && !(text && before && Number(text) === Number(before));
}

function markChanges() {
  let count = 0;
  for (const setting of document.querySelectorAll("#drawer .setting")) {
    const changed = isChanged(setting);
    setting.classList.toggle("is-changed", changed);
    setting.querySelector(".reset").hidden = !changed;
    count += changed;
  }
  byId("changed-count").textContent = count ? `${count} changed` : "";
}

function reset(setting) {
  const input = setting.querySelector("input:not([type=hidden]), select, textarea");
  if (input.type === "checkbox") input.checked = setting.dataset.default === "true";
  else input.value = setting.dataset.default;
  input.focus();
  markChanges();
  check(0);
}

function search() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const onlyChanged = byId("only-changed").checked;
  let count = 0;
  for (const setting of document.querySelectorAll("#drawer .setting")) {
    const fits = words.every((word) => setting.dataset.search.includes(word.replace(/^--/, "")));
    setting.hidden = !fits || (onlyChanged && !setting.classList.contains("is-changed"));
    count += !setting.hidden;
  }
  for (const group of document.querySelectorAll("#drawer .group")) {
    group.hidden = !group.querySelector(".setting:not([hidden])");
  }
  byId("found").textContent = words.length || onlyChanged ? `${count} found` : "";
}

// --- what the server says --------------------------------------------------------------------------------------------

function showProblem(result) {
  document.querySelectorAll(".note").forEach((note) => { note.textContent = ""; });
  document.querySelectorAll("[aria-invalid]").forEach((input) => input.removeAttribute("aria-invalid"));
  const sentence = byId("sentence");
  const said = (sentence || byId("missing"))?.textContent || "";
  if (byId("said").textContent !== said) byId("said").textContent = said; // is read out once
  if (!sentence) return;
  for (const key of result.dataset.keys.split(" ").filter(Boolean)) {
    const place = document.querySelector(`[data-key="${key}"]`);
    if (!place) continue;
    place.querySelector(".note").textContent = sentence.textContent;
    place.querySelector("input:not([type=hidden]), select, textarea")?.setAttribute("aria-invalid", "true");
    break;
  }
}

// Opens what hides a setting, and goes there.
function showSetting(key) {
  const place = document.querySelector(`[data-key="${key}"]`);
  if (place.closest("#drawer")) {
    byId("drawer").open = true;
    byId("search").value = "";
    byId("only-changed").checked = false;
    search();
  }
  place.scrollIntoView({ block: "center" });
  place.querySelector("input:not([type=hidden]), select, textarea").focus({ preventScroll: true });
}

function countPhotos() {
  const count = byId("sheet").querySelector("[data-count]")?.dataset.count;
  const option = byId("photos").selectedOptions[0];
  if (count && option.value.startsWith("set:")) {
    option.textContent = `${option.value.slice(4)} (${count} ${count === "1" ? "photo" : "photos"})`;
  }
}

function afterCheck() {
  const result = byId("result");
  if (!result) return;
  showProblem(result);
  byId("suggested").value = result.dataset.name;
  byId("name").placeholder = result.dataset.name;
  byId("k-data-instance_prompt").placeholder = result.dataset.instance || "a photo of sks dog";
  byId("k-data-class_prompt").placeholder = result.dataset.class || "a photo of a dog";
  for (const part of ["sheet", "plan"]) {
    const version = result.dataset[part] + (part === "plan" ? byId("topology").value : byId("photos").value + byId("folder").value);
    if (seen[part] !== version && part === "plan") askForPlan();
    else if (seen[part] !== version && seen[part] !== null) htmx.trigger(document.body, "sheet");
    seen[part] = version;
  }
}

// A newer question does not wait for the answer to the former one, which the server gives up.
async function askForPlan(more = {}) {
  const number = ++plans;
  const place = byId("plan");
  place.classList.add("htmx-request");
  const body = new URLSearchParams([...new FormData(byId("new")), ...Object.entries(more)]);
  try {
    const answer = await fetch("/new/plan", { method: "POST", body, headers: { "hx-request": "true" } });
    const text = await answer.text();
    if (number === plans && answer.status !== 204) place.innerHTML = text;
  } catch { // the server is gone, which the head of the page says
  }
  if (number === plans) place.classList.remove("htmx-request");
}

// --- photos ----------------------------------------------------------------------------------------------------------

async function currentSet() {
  const photos = byId("photos");
  if (photos.value.startsWith("set:")) return photos.value.slice(4);
  const wanted = byId("noun").value.replace(/[^\w .+@-]/g, "").replace(/^[^\w]+/, "").trim() || "subject";
  const answer = await fetch("/new/photos", { method: "POST", body: new URLSearchParams({ name: wanted }) });
  const { name, problem } = await answer.json();
  if (problem) throw new Error(problem);
  photos.add(new Option(name, `set:${name}`), 1);
  photos.value = `set:${name}`;
  return name;
}

function uploadLine(name) {
  const line = byId("uploads").appendChild(document.createElement("li"));
  const label = line.appendChild(document.createElement("span"));
  label.textContent = name;
  const bar = line.appendChild(document.createElement("progress"));
  bar.max = 1;
  bar.value = 0;
  bar.setAttribute("aria-label", `upload of ${name}`);
  return { done: () => line.remove(), progress: (share) => { bar.value = share; }, fail: (why) => {
    bar.remove();
    line.className = "problem";
    label.textContent = why;
  } };
}

function send(set, file, line) {
  return new Promise((resolve) => {
    const request = new XMLHttpRequest();
    request.open("POST", `/new/photos/${encodeURIComponent(set)}/upload?name=${encodeURIComponent(file.name)}`);
    request.setRequestHeader("content-type", "application/octet-stream");
    request.upload.addEventListener("progress", (event) => line.progress(event.loaded / event.total));
    request.addEventListener("load", () => {
      if (request.status === 200) line.done();
      else line.fail(problemOf(request, file.name));
      resolve();
    });
    request.addEventListener("error", () => { line.fail(`${file.name}: the connection broke; try again.`); resolve(); });
    request.send(file);
  });
}

function problemOf(request, name) {
  try {
    return JSON.parse(request.responseText).problem;
  } catch {
    return `${name}: ${request.status === 413 ? request.responseText : "the server could not take it."}`;
  }
}

// One batch after another, so that all go into one set.
function upload(files) {
  const chosen = [...files];
  uploads = uploads.then(() => uploadBatch(chosen));
}

async function uploadBatch(chosen) {
  byId("uploads").replaceChildren();
  const max = Number(byId("files").dataset.max);
  const good = chosen.filter((file) => {
    if (file.size <= max) return true;
    uploadLine(file.name).fail(`${file.name} has ${Math.ceil(file.size / 2 ** 20)} MB; at most ${max / 2 ** 20} MB can be sent.`);
    return false;
  });
  if (!good.length) return;
  const lines = good.map((file) => uploadLine(file.name));
  try {
    const set = await currentSet();
    for (const [index, file] of good.entries()) await send(set, file, lines[index]);
  } catch (error) {
    lines.forEach((line) => line.fail(error.message));
  }
  check(0);
  htmx.trigger(document.body, "sheet");
}

// --- events ----------------------------------------------------------------------------------------------------------

function listenToDrops() {
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", Boolean(event.target.closest?.("#drop")));
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    if (event.dataTransfer.files.length) upload(event.dataTransfer.files);
  });
}

// The field itself is listened to: while its dialog is open, the form may be replaced. It may hold files already, which
// were chosen while this script was on its way.
function listenToFiles() {
  const field = byId("files");
  field.onchange = () => {
    if (field.files.length) upload(field.files);
    field.value = ""; // the same files can be chosen again
  };
  field.onchange();
}

function changed(event) {
  const { id, form } = event.target;
  if (id === "search" || id === "only-changed") {
    search();
  } else if (form?.id === "new" && id !== "base") {
    markChanges();
    check(event.type === "change" ? 50 : WAIT);
  }
}

async function copy(button) {
  const text = byId(button.dataset.copy).textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no permission, or an address without encryption
    getSelection().selectAllChildren(byId(button.dataset.copy));
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function forget() {
  isForgotten = true;
  sessionStorage.removeItem(STATE);
}

function startOver() {
  forget();
  location.reload();
}

// Shows the form as it was left; what it names may be gone.
async function restore() {
  const saved = sessionStorage.getItem(STATE);
  if (!saved) return start();
  const values = JSON.parse(saved);
  delete values.tab;
  delete values.suggested;
  values.base_was = values.base;
  const page = byId("new-page");
  await htmx.ajax("POST", "/new/form", { values, target: "#new-page", swap: "outerHTML" });
  if (page === byId("new-page")) start();
  return undefined;
}

document.addEventListener("input", changed);
document.addEventListener("change", changed);
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.copy) copy(button);
  if (button?.id === "measure") askForPlan({ measure: "1" });
  if (button?.id === "start-over") startOver();
  if (button?.dataset.show) showSetting(button.dataset.show);
  if (button?.classList.contains("reset")) reset(button.closest(".setting"));
});
document.body.addEventListener("captions", () => htmx.trigger(document.body, "sheet"));
document.body.addEventListener("htmx:afterSettle", (event) => {
  if (event.target.id === "outcome") afterCheck();
  if (event.target.id === "sheet") countPhotos();
  if (event.target.id === "new-page") start();
});
document.body.addEventListener("htmx:beforeOnLoad", (event) => {
  if (event.detail.xhr.getResponseHeader("hx-redirect")) forget();
});

function start() {
  listenToFiles();
  seen.sheet = seen.plan = null;
  markChanges();
  check(0);
}

listenToDrops();
// Uploads wait until the form is as it was left: they would be lost with what is shown until then.
const listens = new Promise((resolve) => { document.addEventListener("DOMContentLoaded", resolve); }); // htmx, too
let uploads = listens.then(restore).catch(() => {
  markChanges();
  htmx.trigger("#new", "check"); // without keeping this form in the place of the one that did not come
});
listenToFiles();
