"use strict";
(() => {
  const unfold = () => document.querySelectorAll("details").forEach((part) => { part.open = true; });
  window.addEventListener("beforeprint", unfold);
  const grid = document.querySelector("[data-tiles]");
  if (!grid) return;
  const tiles = [...grid.children];
  const form = document.querySelector("[data-filters]");
  const chosen = (name) => form.querySelector(`[data-filter="${name}"]`)?.value ?? "";

  const matches = (tile) => {
    const sought = chosen("text").trim().toLowerCase();
    return (!sought || tile.textContent.toLowerCase().includes(sought))
      && (!chosen("group") || tile.dataset.group === chosen("group"))
      && (!chosen("remark") || tile.dataset.remarks.split(" ").includes(chosen("remark")));
  };

  const show = () => {
    const shown = tiles.filter((tile) => !(tile.hidden = !matches(tile))).length;
    document.querySelector("[data-count]").textContent = `${shown} of ${tiles.length} shown`;
    document.querySelector("[data-empty]").hidden = shown > 0;
  };

  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  // Going back to the page restores its filters.
  window.addEventListener("pageshow", show);
})();
