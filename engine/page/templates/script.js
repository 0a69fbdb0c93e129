"use strict";
function keyOf(cell) {
  const text = cell.textContent.trim();
  const number = parseFloat(text.replace(/,/g, "").replace(/^\+/, ""));
  return Number.isNaN(number) ? text : number;
}
function compare(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b);
  return typeof a === "number" ? -1 : 1;
}
function sortBy(header) {
  const table = header.closest("table"), body = table.tBodies[0], column = header.cellIndex;
  const descending = header.getAttribute("aria-sort") === "ascending";
  const rows = Array.from(body.rows, (row) => [keyOf(row.cells[column]), row]);
  rows.sort((a, b) => (descending ? -1 : 1) * compare(a[0], b[0]));
  for (const other of header.parentElement.cells) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...rows.map((each) => each[1]));
}
function filter(select) {
  for (const item of select.closest(".gallery").querySelectorAll("li")) {
    item.hidden = select.value !== "" && item.dataset.class !== select.value;
  }
}
for (const button of document.querySelectorAll("thead button")) button.addEventListener("click", () => sortBy(button.parentElement));
for (const select of document.querySelectorAll(".gallery select")) select.addEventListener("change", () => filter(select));
