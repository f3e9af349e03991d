"use strict";
(() => {
  const viewer = document.querySelector("[data-viewer]");
  const stage = viewer.querySelector("[data-stage]");
  const slices = [...viewer.querySelectorAll("[data-slice]")];
  const slider = (name) => viewer.querySelector(`[data-slider="${name}"]`);
  const toggle = viewer.querySelector("[data-toggle]");
  let current = Number(viewer.dataset.start);

  const showSlice = (index) => {
    const next = Math.min(slices.length - 1, Math.max(0, index));
    slices[next].hidden = false;
    if (next !== current) slices[current].hidden = true;
    current = next;
    const position = `slice ${current + 1} of ${slices.length}`;
    slider("slice").value = current + 1;
    slider("slice").setAttribute("aria-valuetext", position);
    for (const text of viewer.querySelectorAll("[data-position]")) text.textContent = position;
  };

  const dim = (name) => viewer.style.setProperty(`--${name}`, slider(name).value / 100);

  const setMap = (on) => {
    viewer.classList.toggle("plain", !on);
    toggle.setAttribute("aria-pressed", String(on));
    toggle.firstChild.textContent = on ? "Map is on " : "Map is off ";
  };

  const moves = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, PageUp: -5, PageDown: 5,
    Home: -Infinity, End: Infinity };

  const onKey = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.toLowerCase() === "h" && toggle) {
      setMap(viewer.classList.contains("plain"));
    } else if (event.target === stage && slices.length > 1 && event.key in moves) {
      showSlice(current + moves[event.key]);
    } else return;
    event.preventDefault();
  };

  // A wheel turns one slice a notch; a touchpad's many small steps add up to one.
  let turned = 0;
  const onWheel = (event) => {
    if (event.ctrlKey) return;
    event.preventDefault();
    turned += event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY / 40 : event.deltaY;
    if (Math.abs(turned) < 1) return;
    showSlice(current + Math.sign(turned));
    turned = 0;
  };

  for (const name of ["heat", "brightness", "contrast"]) {
    if (slider(name)) slider(name).addEventListener("input", () => dim(name));
  }
  if (toggle) {
    toggle.addEventListener("click", () => setMap(viewer.classList.contains("plain")));
    slider("heat").addEventListener("input", () => setMap(true));
  }
  viewer.querySelector("[data-reset]").addEventListener("click", () => {
    for (const name of ["brightness", "contrast"]) { slider(name).value = 100; dim(name); }
  });
  if (slices.length > 1) {
    slider("slice").addEventListener("input", (event) => showSlice(event.target.value - 1));
    stage.addEventListener("wheel", onWheel, { passive: false });
    showSlice(current);
  }
  viewer.addEventListener("keydown", onKey);
  viewer.querySelector("[data-controls]").hidden = false;
})();
