// Evolve in the browser: CMA-ES in a worker, the curve of its scores, and its controller at play.
import { $, Chart, Runner, badge, count, paint, slider } from "./ui.js";

/** Name of the agent that is evolved. */
export const YOURS = "yours";

/** The worker: one message per generation, until it is terminated, or one with the error that ended it. */
export async function evolveInWorker(WorldModel, { data: { wasm, weights, settings } }) {
  try {
    const world = await WorldModel.load({ wasm, weights });
    const search = world.evolution(settings), { shape } = search;
    for (;;) {
      const start = performance.now(), found = search.generation();
      postMessage({ ...found, shape, parameters: search.parameters, seconds: (performance.now() - start) / 1000 });
    }
  } catch (error) {
    postMessage({ error: error.message });
  }
}

/** Set up the demonstration; `createWorker` starts a worker that runs `evolveInWorker`. */
export function evolve(world, about, files, createWorker, useAgent) {
  const section = $("#evolve"), status = $("#evolve-status"), start = $("#evolve-start");
  const state = { worker: null, lines: [], seed: 1, episode: 1 };
  const dream = world.dream({ seed: 1 });
  const chart = new Chart($("#evolve-chart"), { height: 230, x: [0, 10], y: [0, 100], labelY: about.score, labelX: "generation" });
  chart.redraw = curves;
  slider($("#evolve-population"), $("#evolve-population-value"), String, reset);
  const temperature = slider($("#evolve-temperature"), $("#evolve-temperature-value"), (value) => value.toFixed(2), reset);

  const runner = new Runner(section, about.frames_per_second, step, draw);

  function step() {
    const found = dream.step(dream.act(YOURS));
    if (found.terminated || found.truncated) dream.reset(++state.episode);
  }

  function draw() {
    if (!state.lines.length) return;
    paint($("#evolve-canvas"), world.decode(dream.z));
    badge($("#evolve-badge"), `Generation ${state.lines.length}: step ${count(dream.steps)}`);
  }

  function curves() {
    const { lines } = state, shown = lines.flatMap(({ best, worst }) => [best, worst]);
    const low = Math.min(0, ...shown), high = Math.max(low + 1, ...shown);
    chart.range([0, Math.max(10, lines.length)], [low, high * 1.05]);
    const of = (name) => lines.map((line, at) => [at + 1, line[name]]);
    chart.line("worst", "fine", of("worst"));
    chart.line("mean", "line", of("mean"));
    chart.dots("best", of("best"));
  }

  function received({ data }) {
    if (data.error) return failed(data.error);
    state.lines.push(data);
    world.setAgent(YOURS, data.parameters, data.shape);
    if (state.lines.length === 1) {
      dream.temperature = Number($("#evolve-temperature").value);
      dream.reset(state.episode);
      runner.running = true;
      $("#evolve-overlay").hidden = true;
      $("#evolve-take").disabled = false;
    }
    status.textContent =
      `Generation ${data.generation}: ${count(data.mean)} ${about.score} on average, best candidate ${count(data.best)}. ` +
      `${count(data.steps)} steps of dreams in ${data.seconds.toFixed(1)} s.`;
    curves();
  }

  function stop() {
    state.worker?.terminate();
    state.worker = null;
    start.textContent = state.lines.length ? "Start again" : "Start";
  }

  function failed(message) {
    stop();
    status.textContent = `The evolution stopped: ${message}.`;
  }

  function reset() {
    stop();
    state.lines = [];
    runner.running = false;
    start.textContent = "Start";
    status.textContent = "Not started.";
    $("#evolve-overlay").hidden = false;
    $("#evolve-reset").disabled = $("#evolve-take").disabled = true;
    badge($("#evolve-badge"), "");
    curves();
  }

  function begin() {
    reset();
    start.textContent = "Stop";
    $("#evolve-reset").disabled = false;
    status.textContent = "Scoring the first generation";
    state.worker = createWorker();
    state.worker.onmessage = received;
    state.worker.onerror = (event) => failed(event.message || "the worker could not start");
    const settings = {
      ...about.evolution,
      popsize: Number($("#evolve-population").value),
      temperature: Number($("#evolve-temperature").value),
      seed: state.seed++,
    };
    state.worker.postMessage({ ...files, settings });
  }

  start.addEventListener("click", () => (state.worker ? stop() : begin()));
  $("#evolve-reset").addEventListener("click", reset);
  $("#evolve-take").addEventListener("click", () => useAgent(YOURS));
  $("#evolve-episodes").textContent = count(about.evolution.episodes);
  $("#evolve-steps").textContent = count(about.evolution.maxSteps);
  temperature(dream.temperature);
  return { state };
}
