// M: the mixture density of a latent, and the value that was sampled from it.
import { $, Chart, Runner, badge, count, oneHot, paint, pauseButton, slider, still } from "./ui.js";

const POINTS = 161, SHOWN = 140; // points of a curve; steps of the series
const WIDTH = 4; // ends of the axis of a latent

/** Set up the demonstration, with a latent to begin with. */
export function memory(world, about, first) {
  const section = $("#memory"), agent = about.agents[0];
  const dream = world.dream({ seed: 3 });
  const state = { seed: 3, latent: first, past: [] };
  const density = new Chart($("#memory-density"), { height: 190, x: [-WIDTH, WIDTH], y: [0, 1], ticksY: 2, left: 30, labelY: "density" });
  const series = new Chart($("#memory-series"), { height: 110, x: [0, SHOWN], y: [-WIDTH, WIDTH], ticksY: 3, left: 30, labelX: "step" });
  density.redraw = series.redraw = curves;

  function step() {
    const found = dream.step(agent ? dream.act(agent) : oneHot(about));
    state.past.push(dream.z);
    if (state.past.length > SHOWN) state.past.shift();
    if (found.terminated || found.truncated) restart(state.seed + 1);
  }

  function restart(seed) {
    state.seed = seed;
    state.past = [];
    dream.reset(seed);
    step(); // the first mixture
  }

  function draw() {
    paint($("#memory-canvas"), world.decode(dream.z));
    badge($("#memory-badge"), `Step ${count(dream.steps)}`);
    curves();
  }

  function curves() {
    if (!state.past.length) return;
    const { weights, means, stds, sample } = dream.mixture(state.latent);
    const gauss = (x, at) => (weights[at] * Math.exp(-0.5 * ((x - means[at]) / stds[at]) ** 2)) / (stds[at] * 2.50662827);
    // Points are dense around every component: narrow ones would be missed by a regular grid.
    const near = [...means.keys()].flatMap((at) => [-3, -2, -1.5, -1, -0.6, -0.3, 0, 0.3, 0.6, 1, 1.5, 2, 3].map((by) => means[at] + by * stds[at]));
    const grid = Array.from({ length: POINTS }, (_, at) => -WIDTH + (2 * WIDTH * at) / (POINTS - 1));
    const xs = [...grid, ...near].filter((x) => Math.abs(x) <= WIDTH).sort((one, other) => one - other);
    const each = [...weights.keys()].map((at) => xs.map((x) => [x, gauss(x, at)]));
    const all = xs.map((x, number) => [x, each.reduce((sum, points) => sum + points[number][1], 0)]);
    const top = Math.max(0.5, ...all.map((point) => point[1]));
    density.range([-WIDTH, WIDTH], [0, 2 ** Math.ceil(Math.log2(top))]);
    density.line("area", "fill", all);
    each.forEach((points, at) => density.line(`component ${at}`, "fine", points));
    density.line("all", "line", all);
    density.mark("sample", Math.max(-WIDTH, Math.min(WIDTH, sample)));
    const first = dream.steps - state.past.length;
    const end = Math.max(SHOWN, dream.steps);
    series.range([end - SHOWN, end], [-WIDTH, WIDTH]);
    series.line("values", "line", state.past.map((z, at) => [first + at + 1, Math.max(-WIDTH, Math.min(WIDTH, z[state.latent]))]));
  }

  const runner = new Runner(section, about.frames_per_second / 4, step, draw);
  const pause = pauseButton($("#memory-pause"), runner);
  const latent = slider($("#memory-latent"), $("#memory-latent-value"), (value) => `z${value}`, (value) => ((state.latent = value), curves()));
  const temperature = slider($("#memory-temperature"), $("#memory-temperature-value"), (value) => value.toFixed(2), (value) => (dream.temperature = value));
  $("#memory-latent").max = world.info.latentSize - 1;
  $("#memory-step").addEventListener("click", () => (pause(true), runner.once()));
  $("#memory-restart").addEventListener("click", () => (restart(state.seed), pause(false), draw()));
  latent(first);
  temperature(dream.temperature);
  restart(state.seed);
  draw();
  pause(still());
  return { dream, state };
}
