// Sorts a table by the column whose heading is clicked: numbers by size, all else by name, dashes last.
const value = (row, column) => {
  const text = row.cells[column].textContent.trim(), number = parseFloat(text.replace(/^[+<]/, ""));
  return text === "-" ? null : Number.isNaN(number) || /^\d+-\d/.test(text) ? text : number;
};
const compare = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
for (const heading of document.querySelectorAll("thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...heading.childNodes);
  heading.append(button);
  button.addEventListener("click", () => {
    const column = heading.cellIndex, body = heading.closest("table").tBodies[0];
    const first = body.rows.length && typeof value(body.rows[0], column) === "number" ? "descending" : "ascending";
    const now = heading.getAttribute("aria-sort");
    const next = now === null ? first : now === "ascending" ? "descending" : "ascending";
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    const rows = [...body.rows].map((row) => [value(row, column), row]);
    rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : sign * compare(a, b)));
    body.append(...rows.map(([, row]) => row));
  });
}
