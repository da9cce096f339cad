// The page: loads the world model, with progress and messages, and sets up the demonstrations that have data.
import { WorldModel } from "./worldmodels.js";
import { evolve, evolveInWorker } from "./evolve.js";
import { memory } from "./memory.js";
import { pair } from "./pair.js";
import { play } from "./play.js";
import { $, Film, count, element, timing } from "./ui.js";
import { vision } from "./vision.js";

const MEGABYTE = 1e6;

/** Show how much of the files has arrived. */
function progress(done, total) {
  $("#loading-bar").value = total ? done / total : 0;
  $("#loading-text").textContent = `Loading the world model: ${(done / MEGABYTE).toFixed(1)} of ${(total / MEGABYTE).toFixed(1)} MB`;
}

/** Error with a message for the reader. */
class PageError extends Error {}

/** Files of a page in a folder: fetched, with progress. */
class FolderFiles {
  constructor(about) {
    this.sizes = about.files; // name -> bytes
    this.done = 0;
    this.total = Object.values(about.files).reduce((sum, size) => sum + size, 0);
  }

  async read(name) {
    const answer = await fetch(name);
    if (!answer.ok) throw new PageError(`${name}: the server answered ${answer.status}.`);
    const bytes = new Uint8Array(this.sizes[name]), reader = answer.body.getReader();
    let at = 0;
    for (let part; !(part = await reader.read()).done; at += part.value.length) {
      if (at + part.value.length > bytes.length) throw new PageError(`${name}: expected ${count(bytes.length)} bytes, got more. The file was altered.`);
      bytes.set(part.value, at);
      progress((this.done += part.value.length), this.total);
    }
    if (at < bytes.length) throw new PageError(`${name}: expected ${count(bytes.length)} bytes, got ${count(at)}. The file is truncated; load the page again.`);
    return bytes.buffer;
  }

  async picture(name) {
    return URL.createObjectURL(new Blob([await this.read(name)], { type: "image/webp" }));
  }

  createWorker() {
    return new Worker("app.js", { type: "module" });
  }
}

/** Files inside the page: text in blocks after this script, which arrive while it runs. */
class PageFiles {
  constructor(about) {
    this.blocks = about.blocks; // name -> { count, size, packedSize, gzip, float16 }
    this.total = Object.values(about.blocks).reduce((sum, { size }) => sum + size, 0);
    this.expected = Object.values(about.blocks).reduce((sum, { count }) => sum + count, 0);
  }

  async arrive() {
    const parts = document.getElementsByClassName("block");
    while (document.readyState === "loading") {
      progress((this.total * parts.length) / this.expected, this.total);
      await new Promise((resolve) => setTimeout(resolve, 30));
    }
    if (parts.length < this.expected || !document.getElementById("end"))
      throw new PageError(`This file is truncated: expected ${this.expected} blocks of weights, got ${parts.length}. Copy or download it again.`);
    progress(this.total, this.total);
  }

  text(name) {
    return Array.from(document.querySelectorAll(`.block[data-file="${name}"]`), (part) => part.textContent).join("");
  }

  async read(name) {
    const { packedSize, gzip, float16 } = this.blocks[name];
    if (typeof DecompressionStream === "undefined")
      throw new PageError("This browser is too old for this page: use Chrome 91, Firefox 113 or Safari 16.4, or a newer version.");
    try {
      const bytes = extract(this.text(name), packedSize);
      if (!gzip) return bytes.buffer;
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      const content = await new Response(stream).arrayBuffer();
      return float16 ? interleave(new Uint8Array(content)).buffer : content;
    } catch {
      throw new PageError(`${name}: the data in this page are damaged. Copy or download the page again.`);
    }
  }

  async picture(name) {
    return URL.createObjectURL(new Blob([await this.read(name)], { type: "image/webp" }));
  }

  createWorker() {
    const source = document.getElementById("app").textContent;
    return new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  }
}

/**
 * Bytes of a text in which `embed` of embedding.py has written them: seven bits a character. A character from U+0100 on
 * is one of four values that HTML has no character for, and the seven bits after it.
 */
function extract(text, size) {
  const forbidden = [0, 10, 13, 60], bytes = new Uint8Array(size);
  let value = 0, bits = 0, at = 0;
  const append = (group) => {
    value = ((value << 7) | group) & 0x7fff;
    if ((bits += 7) >= 8) bytes[at++] = value >> (bits -= 8);
  };
  for (let index = 0; index < text.length; index++) {
    const code = text.charCodeAt(index), pair = code - 0x100;
    if (pair >= 0) append(forbidden[pair >> 7]);
    append(pair >= 0 ? pair & 127 : code);
  }
  if (at < size) throw new PageError(`expected ${size} bytes, got ${at}`);
  return bytes;
}

/** Put the bytes of float16 numbers together: all low bytes, then all high bytes. */
function interleave(planes) {
  const bytes = new Uint8Array(planes.length), half = (planes.length + 1) >> 1;
  for (let at = 0; at < half; at++) bytes[2 * at] = planes[at];
  for (let at = half; at < planes.length; at++) bytes[2 * (at - half) + 1] = planes[at];
  return bytes;
}

async function film(files, about) {
  if (!about) return null;
  const image = new Image();
  image.src = await files.picture(about.file);
  try {
    await image.decode();
  } catch {
    throw new PageError(`${about.file}: this browser cannot show the recording (WebP), or the file is damaged.`);
  }
  return new Film(about, image);
}

/** Seed and temperature of the address, such as #seed=5&temperature=1.15. */
function start(info) {
  const asked = new URLSearchParams(location.hash.slice(1));
  const number = (name, low, high, otherwise) => {
    const value = asked.has(name) ? Number(asked.get(name)) : NaN;
    return value >= low && value <= high ? value : otherwise;
  };
  return { seed: Math.floor(number("seed", 0, 2 ** 32 - 1, 0)), temperature: number("temperature", 0.05, 2, info.temperature) };
}

/** A number with its unit, in bold. */
const strong = (text) => element("strong", {}, text);

function exploited(world, about, recorded) {
  const { agent, temperature, termination, dream, game } = about.exploited, longest = world.info.maxSteps;
  const result = about.survival
    ? `survives ${count(dream.mean)} of ${count(longest)} steps; the real game terminates after ${count(game.mean)}`
    : `scores ${count(dream.mean)}; in the real game it scores ${count(game.mean)}`;
  $("#exploited-text").textContent =
    `This controller was evolved at temperature ${temperature}, where the dream is nearly deterministic and errors of M repeat. ` +
    `In that dream it ${result}.`;
  $("#exploited-note").textContent =
    `Means over ${dream.n} dreams and ${game.n} games; 95 % intervals ${count(dream.ci95[0])} to ${count(dream.ci95[1])} and ${count(game.ci95[0])} to ${count(game.ci95[1])}. ` +
    `These dreams terminate when M's termination logit exceeds 0. ${recorded.note}`;
  return pair($("#exploited"), world, about, recorded, { agent, temperature, termination, seed: 0 }, [
    [strong(`${count(dream.mean)} ${about.score}`), ` in its dream at temperature ${temperature}`],
    [strong(`${count(game.mean)} ${about.score}`), " in the real game"],
  ]);
}

function agentPair(world, about, recorded) {
  const { dream, game } = about.scores;
  $("#agent-text").textContent =
    "C, a linear controller, acts on V's latent vector and M's state, in the dream as in the game. " +
    "The dream is computed here and takes its own course; the game is a recording.";
  const score = (one, where) => (one ? [strong(`${count(one.mean)} ${about.score}`), ` ${where}, mean of ${count(one.n)}`] : [where]);
  $("#agent-note").textContent = recorded.note;
  return pair($("#agent"), world, about, recorded, { agent: about.agents[0], temperature: world.info.temperature, seed: 7 }, [
    score(dream, `in the dream at temperature ${world.info.temperature}`),
    score(game, "in the real game"),
  ]);
}

/** Remove the demonstrations without data, and link the others. */
function contents(about) {
  if (!about.films.exploited) $("#exploited").remove();
  if (!about.films.agent) $("#agent").remove();
  if (!about.has_reward) $("#evolve").remove();
  for (const section of document.querySelectorAll("main section")) {
    const link = element("a", { href: `#${section.id}` }, $("h2", section).textContent);
    link.addEventListener("click", (event) => (event.preventDefault(), section.scrollIntoView(), section.focus({ preventScroll: true })));
    $("#contents").append(element("li", {}, link));
    section.tabIndex = -1;
  }
}

async function main() {
  const about = JSON.parse(document.getElementById("about").textContent);
  const files = about.blocks ? new PageFiles(about) : new FolderFiles(about);
  $("#description").textContent = about.description;
  contents(about);
  await files.arrive?.();
  const [wasm, weights] = await Promise.all([files.read("dream.wasm"), files.read("dream.safetensors")]);
  const world = await WorldModel.load({ wasm, weights });
  about.agents = world.info.agents.filter((name) => name !== about.exploited?.agent);
  about.choices = about.squash === "argmax" ? (world.info.controllers[about.agents[0]]?.choices ?? [about.actions.length]) : [];
  about.start = start(world.info);
  $("#loading").hidden = true;
  $("main").hidden = false;

  const played = play(world, about), shown = { play: played };
  addEventListener("hashchange", () => location.hash.includes("=") && played.open(start(world.info)));
  globalThis.worldmodels = { world, shown, timing, WorldModel };
  // The first frame is on the screen before everything else is loaded and set up.
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  performance.mark("first frame");
  const [agentFilm, exploitedFilm] = await Promise.all([film(files, about.films.agent), film(files, about.films.exploited)]);
  const demonstrations = {
    exploited: () => exploited(world, about, exploitedFilm),
    vision: () => vision(world, about, agentFilm ?? exploitedFilm),
    memory: () => memory(world, about, shown.vision.latents[0]),
    agent: () => agentPair(world, about, agentFilm),
    evolve: () => evolve(world, about, { wasm, weights }, () => files.createWorker(), played.useAgent),
  };
  for (const [name, setUp] of Object.entries(demonstrations)) {
    if (document.getElementById(name)) shown[name] = setUp();
    await new Promise((resolve) => setTimeout(resolve));
  }
  document.documentElement.dataset.ready = "true";
  reportSpeed(played.runner);
}

/** Show every second what a step and a frame of the dream take, and the frames a second since the last time. */
function reportSpeed(runner) {
  let { frames, seconds } = runner, rate = "";
  setInterval(() => {
    if (runner.seconds - seconds > 0.5) {
      rate = `, ${Math.round((runner.frames - frames) / (runner.seconds - seconds))} frames a second`;
      ({ frames, seconds } = runner);
    }
    $("#timing").textContent = `On this device: ${timing.step.toFixed(2)} ms a step of the dream, ${timing.decode.toFixed(2)} ms a decoded frame${rate}.`;
  }, 1000);
}

const known = (error) => error instanceof PageError || error?.name === "WorldModelError";

/** Show an error: of the page, or of a demonstration once the page is loaded. */
function show(error) {
  const what = document.documentElement.dataset.ready ? "A demonstration" : "The page";
  $("#error").hidden = false;
  $("#error").textContent = known(error) ? error.message : `${what} stopped: ${error?.message ?? error}`;
}

function failed(error) {
  $("#loading").hidden = true;
  $("main").hidden = true;
  show(error);
  if (!known(error)) console.error(error);
}

if (typeof document === "undefined") onmessage = (event) => evolveInWorker(WorldModel, event);
else {
  addEventListener("error", ({ error }) => error && show(error)); // none with a notice, such as that of a ResizeObserver
  addEventListener("unhandledrejection", ({ reason }) => show(reason));
  main().catch(failed);
}
