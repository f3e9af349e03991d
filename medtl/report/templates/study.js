"use strict";
(() => {
  const viewer = document.querySelector("[data-viewer]");
  const find = (selector) => viewer.querySelector(selector);
  const data = JSON.parse(document.querySelector("[data-pixels]").textContent);
  const [depth, height, width] = data.shape;
  const strides = [height * width, width, 1];
  const ramp = Uint8Array.from(atob(data.ramp), (letter) => letter.charCodeAt(0));
  const stages = [...viewer.querySelectorAll("[data-stage]")];
  const at = [...data.start];  // the voxel that all planes pass through
  const grey = new Uint8ClampedArray(data.levels);
  let [low, high] = data.window;
  let inverted = false;
  let image;
  let maps;
  let map = 0;

  // Differences of neighbours, low bytes before high ones: typed arrays wrap as the packing did.
  const unpack = async (text, Kind) => {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    const count = depth * height * width;
    const values = new Kind(count);
    for (let i = 0; i < count; i++) {
      const high = Kind.BYTES_PER_ELEMENT > 1 ? bytes[count + i] << 8 : 0;
      values[i] = (i ? values[i - 1] : 0) + bytes[i] + high;
    }
    return values;
  };

  // Rows and columns of the plane that fixes an axis; the slices of a volume run upwards.
  const others = (axis) => [[1, 2], [0, 2], [0, 1]][axis];

  const paint = (canvas, axis, colour) => {
    const [down, across] = others(axis);
    const rows = data.shape[down];
    const columns = data.shape[across];
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(columns, rows);
    const first = at[axis] * strides[axis];
    for (let row = 0, place = 0; row < rows; row++) {
      const start = first + (down === 0 ? rows - 1 - row : row) * strides[down];
      for (let column = 0; column < columns; column++, place += 4) {
        colour(picture.data, place, start + column * strides[across]);
      }
    }
    context.putImageData(picture, 0, 0);
  };

  const showGrey = (pixels, place, voxel) => {
    pixels[place] = pixels[place + 1] = pixels[place + 2] = grey[image[voxel]];
    pixels[place + 3] = 255;
  };

  const showHeat = (pixels, place, voxel) => {
    pixels.set(ramp.subarray(4 * maps[map][voxel], 4 * maps[map][voxel] + 4), place);
  };

  // Width and height of a stage, and the width of its pixels, which are centred in it.
  const frame = (stage) => stage.dataset.frame.split(" ").map(Number);

  const cross = (stage) => {
    const path = stage.querySelector("[data-cross]");
    if (!path) return;
    const [down, across] = others(Number(stage.dataset.axis));
    const [width, height, wide] = frame(stage);
    const left = (width - wide) / 2;
    const row = down === 0 ? data.shape[0] - 1 - at[0] : at[down];
    const x = left + wide * (at[across] + 0.5) / data.shape[across];
    const y = height * (row + 0.5) / data.shape[down];
    const gap = 14;
    path.setAttribute("d", `M${left} ${y}H${x - gap}M${x + gap} ${y}H${left + wide}`
      + `M${x} 0V${y - gap}M${x} ${y + gap}V${height}`);
  };

  const draw = (stage) => {
    const axis = Number(stage.dataset.axis);
    paint(stage.querySelector("[data-grey]"), axis, showGrey);
    if (maps.length) paint(stage.querySelector("[data-heat]"), axis, showHeat);
  };

  const moveTo = (axis, index) => {
    const count = data.shape[axis];
    at[axis] = Math.min(count - 1, Math.max(0, index));
    const slider = find(`[data-slice="${axis}"]`);
    if (!slider) return;
    const position = `${at[axis] + 1} of ${count}`;
    slider.value = at[axis] + 1;
    slider.setAttribute("aria-valuetext", position);
    find(`[data-position="${axis}"]`).textContent = position;
    draw(stages.find((stage) => Number(stage.dataset.axis) === axis));
    stages.forEach(cross);
  };

  const inUnits = (level) => data.range[0] + level * (data.range[1] - data.range[0]) / (data.levels - 1);
  const written = (value) => {
    const reach = data.range[1] - data.range[0];
    return value.toFixed(reach > 50 ? 0 : reach > 5 ? 1 : 3);
  };

  const setWindow = (level, span) => {
    span = Math.max(1, span);
    [low, high] = [level - span / 2, level + span / 2];
    for (let i = 0; i < grey.length; i++) {
      const value = 255 * (i - low) / (high - low);
      grey[i] = inverted ? 255 - Math.min(255, Math.max(0, value)) : value;
    }
    find("[data-slider=level]").value = level;
    find("[data-slider=width]").value = span;
    find("[data-shown=level]").textContent = written(inUnits(level));
    find("[data-shown=width]").textContent = written(inUnits(span) - inUnits(0));
    stages.forEach((stage) => paint(stage.querySelector("[data-grey]"), Number(stage.dataset.axis), showGrey));
  };
  const level = () => (low + high) / 2;
  const span = () => high - low;

  const setInverted = (on) => {
    inverted = on;
    find("[data-invert]").setAttribute("aria-pressed", String(on));
    setWindow(level(), span());
  };

  const toggle = find("[data-toggle]");
  const setMap = (on) => {
    viewer.classList.toggle("plain", !on);
    toggle.setAttribute("aria-pressed", String(on));
    toggle.firstChild.textContent = on ? "Map on " : "Map off ";
  };

  const moves = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5,
    Home: -Infinity, End: Infinity };

  const onKey = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const stage = event.target.closest("[data-stage]");
    if (event.key.toLowerCase() === "h" && toggle) setMap(viewer.classList.contains("plain"));
    else if (event.key.toLowerCase() === "i") setInverted(!inverted);
    else if (stage && depth > 1 && event.key in moves) {
      const axis = Number(stage.dataset.axis);
      moveTo(axis, at[axis] + moves[event.key]);
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
    const axis = Number(event.currentTarget.dataset.axis);
    moveTo(axis, at[axis] - Math.sign(turned));
    turned = 0;
  };

  const moveHere = (stage, event) => {
    const box = stage.querySelector("[data-grey]").getBoundingClientRect();
    const [down, across] = others(Number(stage.dataset.axis));
    const row = Math.floor((event.clientY - box.top) / box.height * data.shape[down]);
    moveTo(across, Math.floor((event.clientX - box.left) / box.width * data.shape[across]));
    moveTo(down, down === 0 ? data.shape[0] - 1 - row : row);
  };

  const onPointer = (event) => {
    const stage = event.currentTarget;
    if (event.type === "pointerdown" && event.button === 0) stage.setPointerCapture(event.pointerId);
    if (!stage.hasPointerCapture(event.pointerId)) return;
    if (depth > 1 && !event.shiftKey) moveHere(stage, event);
    else if (event.type === "pointermove" && event.pointerType !== "touch") {
      const step = data.levels / 500;
      setWindow(level() - event.movementY * step, span() + event.movementX * step);
    }
  };

  const place = (stage) => {
    const [width, , wide] = frame(stage);
    for (const canvas of stage.querySelectorAll("canvas")) canvas.style.width = `${100 * wide / width}%`;
  };

  // The first plane is as tall as the other two together, as far as all are wide enough to be seen.
  const share = () => {
    const sliders = 0.16;  // of the width: so much more height do those of the other two need
    const [first, ...rest] = stages.map(frame).map(([width, height]) => height / width);
    const ratio = rest.reduce((sum, height) => sum + height, sliders) / Math.max(0.1, first - sliders);
    find("[data-planes]").style.setProperty("--first", `${Math.min(4.5, Math.max(1.2, ratio))}fr`);
  };

  const listen = () => {
    for (const name of ["level", "width"]) {
      const slider = find(`[data-slider=${name}]`);
      Object.assign(slider, { min: name === "width" ? 1 : 0, max: data.levels - 1 });
      slider.addEventListener("input", () => (name === "level"
        ? setWindow(Number(slider.value), span()) : setWindow(level(), Number(slider.value))));
    }
    find("[data-reset]").addEventListener("click", () => {
      const [black, white] = data.window;
      setWindow((black + white) / 2, white - black);
      setInverted(false);
    });
    find("[data-invert]").addEventListener("click", () => setInverted(!inverted));
    if (toggle) {
      const opacity = find("[data-slider=heat]");
      toggle.addEventListener("click", () => setMap(viewer.classList.contains("plain")));
      opacity.addEventListener("input", () => {
        viewer.style.setProperty("--heat", opacity.value / 100);
        setMap(true);
      });
    }
    const method = find("[data-method]");
    if (method) {
      method.addEventListener("change", () => {
        map = Number(method.value);
        find("[data-named]").textContent = method.selectedOptions[0].textContent;
        stages.forEach(draw);
      });
    }
    for (const slider of viewer.querySelectorAll("[data-slice]")) {
      slider.addEventListener("input", () => moveTo(Number(slider.dataset.slice), slider.value - 1));
    }
    for (const stage of stages) {
      for (const kind of ["pointerdown", "pointermove"]) stage.addEventListener(kind, onPointer);
      if (depth > 1) stage.addEventListener("wheel", onWheel, { passive: false });
    }
    viewer.addEventListener("keydown", onKey);
  };

  const open = async () => {
    image = await unpack(data.image, Uint16Array);
    maps = await Promise.all(data.maps.map((text) => unpack(text, Uint8Array)));
    stages.forEach(place);
    share();
    listen();
    setWindow(level(), span());
    stages.forEach(draw);
    [0, 1, 2].forEach((axis) => moveTo(axis, at[axis]));
    find("[data-planes]").hidden = find("[data-controls]").hidden = false;
    find("[data-preview]").hidden = true;
    viewer.dataset.ready = "";
  };

  open().catch(() => { find("[data-failed]").hidden = false; });
})();
