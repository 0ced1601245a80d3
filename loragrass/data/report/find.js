"use strict";
const rows = [...document.querySelectorAll("#adapters tbody tr")];
const marks = [...document.querySelectorAll("svg a")];
const find = document.querySelector("#find");
const [box, told] = find.querySelectorAll("input, output");

box.addEventListener("input", () => {
  const wanted = box.value.trim().toLowerCase();
  for (const row of rows) row.hidden = !row.cells[1].textContent.toLowerCase().includes(wanted);
  const hits = new Set(rows.filter(row => !row.hidden).map(row => "#" + row.id));
  for (const mark of marks) mark.classList.toggle("hit", hits.has(mark.getAttribute("xlink:href")));
  document.body.classList.toggle("seek", wanted !== "");
  document.querySelector("#of-adapters details").open ||= wanted !== "";
  told.textContent = wanted && `${hits.size} of ${rows.length}`;
});
box.addEventListener("change", () => rows.find(row => !row.hidden)?.scrollIntoView({block: "center"}));
find.hidden = false;

function order(a, b) { return a - b || a.localeCompare(b); }

function sort(head) {
  const body = head.closest("table").tBodies[0], up = head.getAttribute("aria-sort") !== "ascending";
  const key = row => row.cells[head.cellIndex].textContent.trim().replace(/^–$/, "-1e999");
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * order(key(a), key(b))));
}

for (const head of document.querySelectorAll("th")) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  button.addEventListener("click", () => sort(head));
  head.append(button);
}
