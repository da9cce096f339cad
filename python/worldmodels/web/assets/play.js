// Play inside the dream: keyboard, touch and buttons; you, the agent, or both.
import { $, Chart, Runner, badge, count, element, oneHot, paint, pauseButton, slider, still, timed } from "./ui.js";

const RAMP = 0.15; // largest change of a held steering wheel in a step
const HISTORY = 10; // seconds
const KEYS = "1234567890qwertyuiopasdfghjklzxcvbnm".replace(/[rpm]/g, ""); // without those of commands
const ARROWS = { left: "◀", right: "▶", up: "▲", down: "▼" };

const clip = (value, most) => Math.max(-most, Math.min(most, value));
const activates = ({ key }) => key === " " || key === "Enter";

/** Keys and buttons of the actions: arrows, or one for each value of a discrete action but its first. */
function controls(about) {
  if (about.choices.length) return values(about);
  const { actions, squash } = about;
  // A second dimension has keys even where the task names none.
  const ways = Object.entries(squash === "tanh" && actions.length > 1 ? { up: [0, 1], down: [0, -1], ...about.keys } : about.keys);
  const dimension = (action) => Math.max(0, action.findIndex(Boolean));
  return ways.map(([way, action]) => {
    const of = dimension(action), ends = actions[of].split(" / "), alone = ways.filter(([, other]) => dimension(other) === of).length === 1;
    const name = ends.length === 2 ? ends[action[of] < 0 ? 0 : 1] : alone ? actions[of] : `${actions[of]} ${way}`;
    return { key: `arrow${way}`, sign: ARROWS[way], name, action };
  });
}

/** Keys of discrete actions: the task's arrows, then `KEYS`; `at` is the index of a value in the one-hot vectors. */
function values({ choices, actions, keys }) {
  const found = [], free = [...KEYS], arrows = new Map(Object.entries(keys).map(([way, action]) => [action.indexOf(1), way]));
  let first = 0;
  for (const count of choices) {
    for (let at = first + 1; at < first + count; at++) {
      const name = actions[at], way = arrows.get(at), letter = way ? undefined : free.shift();
      if (way) found.push({ key: `arrow${way}`, sign: ARROWS[way], name, at });
      else found.push({ key: letter ?? `value ${at}`, letter, sign: name, name: letter ? `${name} (key ${letter})` : name, at });
    }
    first += count;
  }
  return found;
}

/** The reader's action: what the pressed keys say. */
class Hands {
  constructor(about, keys) {
    this.about = about;
    this.keys = new Map(keys.map((one) => [one.key, one]));
    this.pressed = new Map(); // key -> what holds it down
    this.wheel = 0;
  }

  get busy() {
    return this.pressed.size > 0;
  }

  action() {
    const held = [...this.pressed.keys()].map((key) => this.keys.get(key));
    if (this.about.choices.length) return oneHot(this.about, held.reverse().map(({ at }) => at));
    const sum = new Float32Array(this.about.actions.length);
    for (const { action } of held) action.forEach((value, at) => (sum[at] += value));
    const action = sum.map((value) => clip(value, 1));
    if (this.about.squash === "carracing") action[0] = this.wheel += clip(action[0] - this.wheel, RAMP);
    return action;
  }
}

/** Set up the demonstration; returns its dream, its runner, and functions that start another agent or dream. */
export function play(world, about) {
  const section = $("#play"), view = $(".view", section), screen = $("#play-screen"), canvas = $("#play-canvas"), overlay = $("#play-overlay");
  const dream = world.dream({ seed: about.start.seed, temperature: about.start.temperature });
  const keys = controls(about), hands = new Hands(about, keys), rate = about.frames_per_second;
  const state = { seed: about.start.seed, player: "agent", agent: about.agents[0], total: 0, best: 0, over: false, chance: null, waiting: true };
  const past = []; // [step, probability]

  const temperature = slider($("#play-temperature"), $("#play-temperature-value"), (value) => value.toFixed(2), (value) => {
    dream.temperature = value;
    address();
  });
  const runner = new Runner(screen, rate, step, draw);
  const pause = pauseButton($("#play-pause"), runner);
  const history = new Chart($("#play-history"), { height: 64, bottom: 4, left: 4, ticksX: 1, ticksY: 1, format: () => "", formatX: () => "" });
  history.redraw = chart;

  function restart(seed = state.seed) {
    Object.assign(state, { seed, total: 0, over: false, chance: null });
    past.length = 0;
    hands.wheel = 0;
    dream.temperature = Number($("#play-temperature").value);
    dream.reset(seed);
    $("#play-seed").value = seed;
    overlay.hidden = !state.waiting;
    overlay.classList.toggle("low", state.waiting);
    address();
    draw();
  }

  function step() {
    if (state.over) return;
    const human = state.player === "human" || !state.agent || (state.player === "both" && hands.busy);
    const action = human ? hands.action() : dream.act(state.agent);
    const found = timed("step", () => dream.step(action));
    state.total += found.reward;
    state.chance = world.info.doneHead ? found.terminationProbability : null;
    state.over = found.terminated || found.truncated;
    past.push([dream.steps, state.chance ?? 0]);
    if (past.length > HISTORY * rate) past.shift();
    if (state.over) finish(found.truncated);
  }

  function finish(truncated) {
    if (state.player !== "agent") state.best = Math.max(state.best, about.survival ? dream.steps : state.total);
    if (state.waiting) return setTimeout(() => state.waiting && restart(state.seed + 1), 1500);
    const who = { human: "You survived", agent: "The agent survived", both: "You and the agent survived" }[state.player];
    const result = about.survival ? `${who} ${count(dream.steps)} steps.` : `The dream ended after ${count(dream.steps)} steps${about.has_reward ? `, return ${count(state.total)}` : ""}.`;
    $("#play-message").textContent = truncated ? `${result} That is the longest dream there is.` : result;
    $("#play-start").textContent = "Again";
    overlay.classList.remove("low");
    overlay.hidden = false;
  }

  function draw() {
    timed("decode", () => paint(canvas, world.decode(dream.z)));
    $("#play-steps").textContent = count(dream.steps);
    $("#play-return").textContent = count(state.total);
    $("#play-best").textContent = count(state.best);
    const chance = state.chance ?? 0, gauge = $("#play-gauge"), part = Math.max(0, 1 + Math.log10(Math.max(chance, 1e-9)) / 3);
    gauge.firstElementChild.style.width = `${100 * part}%`;
    gauge.firstElementChild.style.setProperty("--full", `${100 / Math.max(part, 0.01)}%`);
    gauge.setAttribute("aria-valuenow", chance.toFixed(3));
    $("#play-probability").textContent = chance < 0.001 ? "< 0.1 %" : `${(100 * chance).toFixed(1)} %`;
    const taken = state.player === "both" && hands.busy ? "human" : state.player;
    const who = { human: "You play", agent: "The agent plays", both: "The agent plays; your keys take over" }[taken];
    badge($("#play-who"), state.over ? `Over after ${count(dream.steps)} steps` : who, state.over);
    chart();
  }

  function chart() {
    const last = past.at(-1)?.[0] ?? 0, log = (chance) => Math.max(0, 1 + Math.log10(Math.max(chance, 1e-9)) / 3);
    history.range([last - HISTORY * rate, last], [0, 1]);
    const points = past.map(([at, chance]) => [at, log(chance)]);
    history.line("past", "fill", points);
    history.line("edge", "line", points);
  }

  function choose(player) {
    state.player = player;
    $(`#play-player input[value=${player}]`).checked = true;
    draw();
  }

  function begin(player = state.player) {
    state.waiting = false;
    choose(player);
    restart(about.start.seed);
    pause(false);
    if (player !== "agent") view.scrollIntoView({ block: "nearest" }); // the pad too
  }

  /** Seed and temperature, as the address has them. */
  const hash = () => `#seed=${state.seed}&temperature=${dream.temperature.toFixed(2)}`;

  /** Keep seed and temperature in the address, so that it can be shared. */
  function address() {
    if (!state.waiting) window.history.replaceState(null, "", hash());
  }

  // Keys work while the screen, a button of an action or nothing has the focus.
  const heard = (event) =>
    !event.ctrlKey && !event.metaKey && !event.altKey &&
    (view.contains(event.target) || (event.target === document.body && section.getBoundingClientRect().bottom > 80));
  document.addEventListener("keydown", (event) => {
    if (!heard(event)) return;
    const key = event.key.toLowerCase(), held = hands.keys.get(key);
    const commands = {
      r: () => (state.waiting = false, restart(), pause(false)),
      p: () => pause(runner.running),
      ".": () => (pause(true), runner.once()),
      m: () => state.agent && (state.waiting ? begin("human") : choose(state.player === "human" ? "agent" : "human")),
      "+": () => warm(0.05), "=": () => warm(0.05), "-": () => warm(-0.05),
    };
    const command = commands[key];
    // Until the dream is played, up and down scroll the page.
    if (held && (!key.match(/up|down/) || !state.waiting || view.contains(event.target))) {
      if (state.waiting) begin("human");
      hold(key, event.code, true);
    } else if (command && (!event.repeat || "+=-.".includes(key))) command();
    else if (activates(event) && event.target === screen) again();
    else return;
    event.preventDefault();
  });
  document.addEventListener("keyup", (event) => {
    // By its code too: with Shift pressed since, a key has another name.
    for (const [key, by] of hands.pressed)
      if (by === event.code || (by !== "pad" && key === event.key.toLowerCase())) hold(key, by, false);
  });
  window.addEventListener("blur", () => (hands.pressed.clear(), marks()));

  function again() {
    if (state.waiting) begin("human");
    else if (state.over) restart(), pause(false);
    else pause(runner.running);
  }

  function warm(by) {
    const input = $("#play-temperature");
    temperature(Number(input.value) + by);
    dream.temperature = Number(input.value);
    address();
  }

  function hold(key, by, down) {
    if (down) hands.pressed.set(key, by);
    else if (hands.pressed.get(key) === by) hands.pressed.delete(key);
    marks();
  }

  const pads = new Map();
  function marks() {
    for (const [key, button] of pads) button.classList.toggle("on", hands.pressed.has(key));
  }
  for (const { key, letter, sign, name } of keys) {
    const button = element("button", { type: "button", "aria-label": name, title: name }, sign);
    if (letter) button.append("\u00a0", element("kbd", {}, letter.toUpperCase()));
    const press = () => {
      if (state.waiting) begin("human");
      hold(key, "pad", true);
    };
    button.addEventListener("pointerdown", (event) => (button.setPointerCapture(event.pointerId), press()));
    button.addEventListener("keydown", (event) => activates(event) && press());
    button.addEventListener("keyup", (event) => activates(event) && hold(key, "pad", false));
    for (const kind of ["pointerup", "pointercancel", "lostpointercapture", "blur"])
      button.addEventListener(kind, () => hold(key, "pad", false));
    button.addEventListener("contextmenu", (event) => event.preventDefault());
    pads.set(key, $("#play-pad").appendChild(button));
  }

  if (about.choices.length) {
    $("#play-keys").textContent = "those in the buttons act";
    screen.ariaLabel = screen.ariaLabel.replace("arrows move", $("#play-keys").textContent);
  }
  $("#play-start").addEventListener("click", () => {
    state.waiting ? begin("human") : (restart(), pause(false));
    screen.focus({ preventScroll: true });
  });
  $("#play-player").addEventListener("change", (event) => (state.waiting ? begin(event.target.value) : choose(event.target.value)));
  $("#play-step").addEventListener("click", () => ((state.waiting = false), (overlay.hidden = !state.over), pause(true), runner.once()));
  $("#play-restart").addEventListener("click", () => ((state.waiting = false), restart(), pause(false)));
  $("#play-next").addEventListener("click", () => ((state.waiting = false), restart((state.seed + 1) % 2 ** 32), pause(false)));
  $("#play-seed").addEventListener("change", (event) => {
    const seed = Number(event.target.value);
    state.waiting = false;
    restart(Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32 ? seed : state.seed);
  });
  $("#play-link").addEventListener("click", async (event) => {
    const button = event.target;
    window.history.replaceState(null, "", hash());
    try {
      await navigator.clipboard.writeText(location.href);
      button.textContent = "Copied";
    } catch {
      button.textContent = "In the address bar";
    }
    setTimeout(() => (button.textContent = "Copy link"), 2000);
  });

  // After a click, which has a detail, the keys play: a button or a radio button would keep them to itself. A label moves the
  // focus to its radio button after the listeners have run, so that its click is made here instead.
  for (const name of ["player", "pause", "step", "restart", "next", "link"])
    $(`#play-${name}`).addEventListener("click", (event) => {
      if (!event.detail) return;
      const control = event.target.closest("label")?.control;
      if (control && control !== event.target) event.preventDefault(), control.click();
      screen.focus({ preventScroll: true });
    });

  offer();
  if (!state.agent) {
    $("#play-message").textContent = keys.some(({ letter }) => !letter) ? "Press an arrow key to play." : "Press a key to play.";
    screen.ariaLabel = screen.ariaLabel.replace(" M lets the agent play,", "");
    state.player = "human";
  }
  $("#play-termination").hidden = !world.info.doneHead;
  for (const name of ["return", "best"]) $(`#play-${name}`).parentElement.hidden = !about.has_reward;
  temperature(about.start.temperature);
  restart();
  pause(still());

  /** Offer an agent where there is one. */
  function offer() {
    for (const part of section.querySelectorAll(".with-agent")) part.hidden = !state.agent;
  }

  function useAgent(name) {
    state.agent = name;
    offer();
    begin("agent");
    section.scrollIntoView();
  }

  /** Start the dream of a seed and a temperature. */
  function open(start) {
    about.start = start;
    temperature(start.temperature);
    restart(start.seed);
    if (!state.waiting) pause(false);
  }

  return { dream, state, runner, useAgent, open };
}
