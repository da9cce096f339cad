// Parts that the demonstrations share: screens, films, charts, sliders, and the clock that steps what is visible.

/** First element that matches a selector. */
export const $ = (selector, root = document) => root.querySelector(selector);

/** Number with thousands separators. */
export const count = (value) => Math.round(value).toLocaleString("en-US");

/** Create an element with attributes and children. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/**
 * One-hot vectors of discrete actions: of the first wanted index among the values of each, or of its first value. Zeros
 * for continuous actions.
 */
export function oneHot({ choices, actions }, wanted = []) {
  const action = new Float32Array(actions.length);
  let first = 0;
  for (const count of choices) {
    action[wanted.find((at) => at >= first && at < first + count) ?? first] = 1;
    first += count;
  }
  return action;
}

/** Show a 64x64 frame, RGBA bytes, on a canvas. */
export function paint(canvas, rgba) {
  canvas.getContext("2d").putImageData(new ImageData(rgba, 64, 64), 0, 0);
}

/** RGBA bytes of a 64x64 canvas. */
export const pixels = (canvas) => canvas.getContext("2d").getImageData(0, 0, 64, 64).data;

/** Text and colour of the badge in the corner of a screen. */
export function badge(element, text, over = false) {
  if (element.textContent !== text) element.textContent = text;
  element.classList.toggle("over", over);
}

/** Bind a slider to a function; returns a function that sets its value. */
export function slider(input, output, format, changed) {
  const show = () => (output.textContent = format(Number(input.value)));
  input.addEventListener("input", () => (show(), changed(Number(input.value))));
  show();
  return (value) => ((input.value = value), show());
}

/** A recorded episode: 64x64 frames in one image. */
export class Film {
  constructor(about, image) {
    Object.assign(this, about); // title, frames, columns, steps_per_frame, steps, complete
    this.image = image;
  }

  /** Draw the frame of a step. */
  draw(canvas, step) {
    const frame = Math.min(Math.floor(step / this.steps_per_frame), this.frames - 1);
    const x = 64 * (frame % this.columns), y = 64 * Math.floor(frame / this.columns);
    canvas.getContext("2d").drawImage(this.image, x, y, 64, 64, 0, 0, 64, 64);
  }
}

/** Milliseconds of computing, exponentially averaged: a step of a dream, and a decoded frame on its canvas. */
export const timing = { step: 0, decode: 0 };
export function timed(name, work) {
  const start = performance.now(), result = work(), spent = performance.now() - start;
  timing[name] = timing[name] ? timing[name] + 0.05 * (spent - timing[name]) : spent;
  return result;
}

const MOST_STEPS = 4; // per frame: a slow device plays slower instead of falling behind
const runners = new Set();
const visible = new Map();
let observer, before = 0;

function frame(now) {
  const elapsed = Math.min(now - before, 250);
  before = now;
  for (const runner of runners) {
    try {
      runner.advance(elapsed / 1000);
    } catch (error) {
      runner.stop();
      queueMicrotask(() => {
        throw error; // to the window's listener; the other runners go on
      });
    }
  }
  if (runners.size) requestAnimationFrame(frame);
}

/** Calls `step` at a rate and then `draw`, while it runs and its element is visible. */
export class Runner {
  constructor(element, rate, step, draw) {
    Object.assign(this, { element, rate, step, draw, due: 0, running: false });
    this.seconds = this.frames = 0; // of running visibly
    observer ??= new IntersectionObserver((entries) => entries.forEach((one) => visible.set(one.target, one.isIntersecting)));
    observer.observe(element);
    if (runners.add(this).size === 1) requestAnimationFrame(frame);
  }

  advance(seconds) {
    if (!this.running || !visible.get(this.element)) return;
    this.seconds += seconds;
    this.due = Math.min(this.due + seconds * this.rate, MOST_STEPS);
    if (this.due < 1) return;
    for (; this.due >= 1 && this.running; this.due--) this.step();
    this.draw();
    this.frames++;
  }

  stop() {
    this.running = false;
  }

  /** Step once, whether it runs or not. */
  once() {
    this.step();
    this.draw();
  }
}

/** Let a button pause runners; returns a function that does so too. */
export function pauseButton(button, ...paused) {
  const set = (pause) => {
    for (const runner of paused) runner.running = !pause;
    button.textContent = pause ? "Play" : "Pause";
    button.setAttribute("aria-pressed", String(pause));
  };
  for (const runner of paused) runner.stop = () => set(true);
  button.addEventListener("click", () => set(paused[0].running));
  return set;
}

/** Whether the reader prefers pages without motion. */
export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

const SVG = "http://www.w3.org/2000/svg";

/** A chart with axes; series are paths in the coordinates of its data. */
export class Chart {
  /**
   * @param {SVGElement} svg
   * @param {{height: number, x?: [number, number], y?: [number, number], ticksX?: number, ticksY?: number,
   *   labelX?: string, labelY?: string, format?: (value: number) => string, formatX?: (value: number) => string}} options
   */
  constructor(svg, options) {
    Object.assign(this, { svg, ticksX: 5, ticksY: 3, left: 40, bottom: 18, format: trim, formatX: trim, ...options });
    this.layers = new Map();
    svg.style.height = `${this.height}px`;
    this.axes = svg.appendChild(document.createElementNS(SVG, "g"));
    new ResizeObserver(() => this.resize()).observe(svg);
    this.resize();
  }

  resize() {
    this.width = Math.max(this.svg.clientWidth, 80);
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.range(this.x ?? [0, 1], this.y ?? [0, 1], true);
    this.redraw?.();
  }

  /** Set the ranges of the axes. */
  range(x, y, force = false) {
    const key = [...x, ...y].join();
    if (!force && key === this.key) return;
    Object.assign(this, { x, y, key });
    const add = (tag, attributes, text = "") => {
      const made = this.axes.appendChild(document.createElementNS(SVG, tag));
      for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
      made.textContent = text;
    };
    const place = (text, x, y, anchor) => add("text", { x: x.toFixed(1), y: y.toFixed(1), "text-anchor": anchor }, text);
    const rule = (y) => add("path", { class: "axis", d: `M${this.left} ${y.toFixed(1)}H${this.width}` });
    const low = this.height - this.bottom;
    this.axes.replaceChildren();
    rule(low);
    for (const tick of ticks(...x, this.ticksX)) place(this.formatX(tick), this.toX(tick), this.height - 3, "middle");
    for (const tick of ticks(...y, this.ticksY)) {
      if (tick > y[0]) rule(this.toY(tick));
      place(this.format(tick), this.left - 6, this.toY(tick) + 4, "end");
    }
    if (this.labelX) place(this.labelX, this.width, low - 5, "end");
    if (this.labelY) place(this.labelY, this.left + 4, 10, "start");
  }

  toX(value) {
    return this.left + ((value - this.x[0]) / (this.x[1] - this.x[0])) * (this.width - this.left - 6);
  }

  toY(value) {
    const low = this.height - this.bottom;
    return low - ((value - this.y[0]) / (this.y[1] - this.y[0])) * (low - 6);
  }

  layer(name, kind) {
    if (!this.layers.has(name)) {
      const made = this.svg.appendChild(document.createElementNS(SVG, "path"));
      made.setAttribute("class", kind);
      this.layers.set(name, made);
    }
    return this.layers.get(name);
  }

  /** Draw a line through points [x, y]; `kind` is a class of the style sheet, "fill" closes the area below. */
  line(name, kind, points) {
    let path = points.map(([x, y], at) => `${at ? "L" : "M"}${this.toX(x).toFixed(1)} ${this.toY(y).toFixed(1)}`).join("");
    if (kind === "fill" && points.length) {
      const low = this.height - this.bottom;
      path += `L${this.toX(points.at(-1)[0]).toFixed(1)} ${low}L${this.toX(points[0][0]).toFixed(1)} ${low}Z`;
    }
    this.layer(name, kind).setAttribute("d", path);
  }

  /** Draw dots at points [x, y]. */
  dots(name, points) {
    const path = points.map(([x, y]) => `M${(this.toX(x) - 2.5).toFixed(1)} ${this.toY(y).toFixed(1)}a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0 -5 0`);
    this.layer(name, "dots").setAttribute("d", path.join(""));
  }

  /** Draw a vertical mark. */
  mark(name, x) {
    this.layer(name, "mark").setAttribute("d", `M${this.toX(x).toFixed(1)} 6V${this.height - this.bottom}`);
  }
}

const trim = (value) => value.toLocaleString("en-US", { maximumFractionDigits: 2 });

function ticks(low, high, about) {
  const span = high - low, power = 10 ** Math.floor(Math.log10(span / about));
  const size = power * ([1, 2, 5].find((one) => span / (one * power) <= about) ?? 10);
  const first = Math.ceil(low / size - 1e-9), last = Math.floor(high / size + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, at) => (first + at) * size);
}
