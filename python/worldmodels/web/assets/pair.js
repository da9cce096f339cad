// One controller twice: in the dream, computed here, and in the real game, recorded.
import { $, Runner, badge, count, paint, pauseButton, still } from "./ui.js";

const HOLD = 2; // seconds for which a film that ended shows its last frame

/**
 * @param {HTMLElement} section
 * @param {{agent: string, temperature: number, termination?: string, seed: number}} chosen
 */
export function pair(section, world, about, film, chosen, captions) {
  const [left, right] = section.querySelectorAll("figure");
  const dream = world.dream(chosen);
  const parts = [left, right].map((figure) => ({ canvas: $("canvas", figure), badge: $(".badge", figure), caption: $("figcaption", figure) }));
  const rate = about.frames_per_second, state = { seed: chosen.seed, over: false, at: 0, total: 0 };
  captions.forEach((caption, at) => parts[at].caption.append(...caption));

  function restart() {
    Object.assign(state, { over: false, at: 0, rest: 0, total: 0 });
    dream.reset(state.seed);
    draw();
  }

  function step() {
    if (!state.over) {
      const found = dream.step(dream.act(chosen.agent));
      state.total += found.reward;
      state.over = found.terminated || found.truncated;
    }
    if (++state.at >= film.steps + HOLD * rate) {
      state.at = 0;
      if (state.over) state.seed++, restart();
    }
  }

  function draw() {
    const end = film.steps - 1, at = Math.min(state.at, end), over = film.complete && state.at >= end;
    paint(parts[0].canvas, world.decode(dream.z));
    film.draw(parts[1].canvas, at);
    const score = about.survival || !about.has_reward ? "" : `, return ${count(state.total)}`;
    badge(parts[0].badge, `Dream: step ${count(dream.steps)}${score}${state.over ? ", over" : ""}`, state.over && dream.steps < dream.maxSteps);
    badge(parts[1].badge, `Game: step ${count(film.first + at + 1)}${over ? ", over" : ""}`, over);
  }

  const runner = new Runner(section, rate, step, draw);
  const pause = pauseButton($(".pause", section), runner);
  $(".restart", section).addEventListener("click", () => (restart(), pause(false)));
  restart();
  pause(still());
  return { dream, state };
}
