"use strict";
// The page is complete without this: it makes the tables sort, reads out the histograms, and unfolds what is printed.

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const original = [...body.rows];

  const key = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
  };
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a < b ? -1 : a > b ? 1 : 0);

  const sort = (column) => {
    const head = heads[column];
    const before = head.getAttribute("aria-sort");
    const first = head.classList.contains("number") ? "descending" : "ascending"; // the largest is what one looks for
    const way = before === null ? first : before === "ascending" ? "descending" : "ascending";
    const sign = way === "ascending" ? 1 : -1;
    const keyed = original.map((row) => [key(row, column), row]);
    keyed.sort(([a], [b]) => Number.isNaN(a) - Number.isNaN(b) || sign * compare(a, b)); // NaN last, either way
    body.append(...keyed.map(([, row]) => row));
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", way);
  };

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });
}

for (const drawing of document.querySelectorAll(".histogram svg")) {
  const { low, high, before, after } = drawing.dataset;
  const counts = [before, after].map((text) => text.split(" ").map(Number));
  const readout = drawing.closest("figure").querySelector(".readout");
  const usual = readout.textContent;
  const edge = (bin) => Number((Number(low) + ((high - low) * bin) / counts[0].length).toPrecision(3));

  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    const bin = Math.min(Math.max(Math.floor(share * counts[0].length), 0), counts[0].length - 1);
    const [was, is] = counts.map((list) => list[bin].toLocaleString("en"));
    readout.textContent = `${edge(bin)} to ${edge(bin + 1)}: ${was} → ${is}`;
  });
  drawing.addEventListener("pointerleave", () => (readout.textContent = usual));
}

const folded = () => document.querySelectorAll("details");
let open = [];
addEventListener("beforeprint", () => {
  open = [...folded()].filter((part) => part.open);
  folded().forEach((part) => (part.open = true));
});
addEventListener("afterprint", () => folded().forEach((part) => (part.open = open.includes(part))));
