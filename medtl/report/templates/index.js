"use strict";
(() => {
  const table = document.querySelector("[data-studies]");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.querySelectorAll("th[data-key]")];
  const form = document.querySelector("[data-filters]");
  const order = document.querySelector("[data-order]");
  const filter = (name) => form.querySelector(`[data-filter="${name}"]`);
  const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  const arrange = (compare) => body.append(...rows.sort(compare));

  const sortByColumn = (index, direction) => {
    const numeric = heads[index].dataset.key === "score";
    const value = (row) => row.cells[index].dataset.value;
    arrange((a, b) => direction * (numeric ? value(a) - value(b) : words.compare(value(a), value(b)))
      || a.dataset.rank - b.dataset.rank);
    heads.forEach((head, other) => {
      if (other === index) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    order.value = "column";
  };

  const sortByOrder = () => {
    if (order.value === "column") return;
    arrange((a, b) => a.dataset[order.value] - b.dataset[order.value] || a.dataset.rank - b.dataset.rank);
    heads.forEach((head) => head.removeAttribute("aria-sort"));
  };

  const matches = (row) => {
    const sought = filter("text").value.trim().toLowerCase();
    const group = filter("class").value;
    const label = filter("label") ? filter("label").value : "";
    const reason = filter("reason") ? filter("reason").value : "";
    return (!sought || row.textContent.toLowerCase().includes(sought))
      && (!group || row.dataset.classes.split(" ").includes(group))
      && (!label || row.dataset.label === label)
      && (!reason || row.dataset.reasons.split(" ").includes(reason));
  };

  const show = () => {
    const shown = rows.filter((row) => !(row.hidden = !matches(row))).length;
    document.querySelector("[data-count]").textContent = `${shown} of ${rows.length} shown`;
    document.querySelector("[data-empty]").hidden = shown > 0;
  };

  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = head.dataset.key === "score" ? "descending" : "ascending";
      const current = head.getAttribute("aria-sort");
      const next = current === null ? first : current === "ascending" ? "descending" : "ascending";
      sortByColumn(index, next === "ascending" ? 1 : -1);
    });
  });
  order.addEventListener("change", sortByOrder);
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  // Going back to the page restores its filters.
  window.addEventListener("pageshow", () => { sortByOrder(); show(); });
})();
