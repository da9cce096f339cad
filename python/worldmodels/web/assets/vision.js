// V: a frame, its reconstruction, and what its latents encode.
import { $, element, oneHot, paint, pixels, slider } from "./ui.js";

const SHOWN = 8; // latents with a slider
const SAMPLED = 32; // frames from which the activity of the latents is measured
const SPREAD = 3; // ends of a slider

/** Set up the demonstration; without a film the frames are those of a dream. Returns the most active latents. */
export function vision(world, about, film) {
  const canvas = $("#vision-frame"), context = canvas.getContext("2d", { willReadFrequently: true }), message = $("#vision-message");
  const size = world.info.latentSize;
  let z = new Float32Array(size), encoded = z;
  $("#vision-size").textContent = size;
  const frames = film ? [] : dreamed(world, about);
  const total = film ? film.frames : frames.length;

  function show(index) {
    if (film) film.draw(canvas, index * film.steps_per_frame);
    else paint(canvas, frames[index]);
    encode();
  }

  function encode() {
    const picture = pixels(canvas), { mu } = world.encode(picture), decoded = world.decode(mu);
    encoded = mu;
    paint($("#vision-reconstruction"), decoded);
    let sum = 0;
    for (let at = 0; at < picture.length; at++) if (at % 4 < 3) sum += (picture[at] - decoded[at]) ** 2;
    $("#vision-error").textContent = `(error ${Math.sqrt(sum / 12288 / 65025).toFixed(3)} RMS)`;
    reset();
  }

  function reset() {
    z = Float32Array.from(encoded);
    for (const { latent, set } of sliders) set(z[latent]);
    edit();
  }

  const edit = () => paint($("#vision-edited"), world.decode(z));

  // The latents that vary most over the frames: those without information stay near 0.
  function mostActive() {
    const sum = new Float64Array(size), squares = new Float64Array(size), sampled = Math.min(SAMPLED, total);
    for (let number = 0; number < sampled; number++) {
      const index = Math.floor((number * total) / sampled);
      if (film) film.draw(canvas, index * film.steps_per_frame);
      else paint(canvas, frames[index]);
      world.encode(pixels(canvas)).mu.forEach((value, at) => ((sum[at] += value), (squares[at] += value * value)));
    }
    const variance = (at) => squares[at] / sampled - (sum[at] / sampled) ** 2;
    return [...sum.keys()].sort((one, other) => variance(other) - variance(one)).slice(0, SHOWN);
  }

  const sliders = mostActive().map((latent) => {
    const input = element("input", { type: "range", min: -SPREAD, max: SPREAD, step: 0.05 }), output = element("output");
    $("#vision-latents").append(element("label", { class: "slider" }, element("span", {}, `z${latent}`), output, input));
    return { latent, set: slider(input, output, (value) => value.toFixed(2), (value) => ((z[latent] = value), edit())) };
  });

  function normal() {
    return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  }

  async function open(file) {
    if (!file) return;
    try {
      const picture = await createImageBitmap(file), side = Math.min(picture.width, picture.height);
      context.imageSmoothingQuality = "high";
      context.fillRect(0, 0, 64, 64);
      context.drawImage(picture, (picture.width - side) / 2, (picture.height - side) / 2, side, side, 0, 0, 64, 64);
      encode();
      message.textContent = `${file.name}, cropped to a square of 64x64 pixels. It stays on your device.`;
    } catch {
      message.textContent = `${file.name}: expected an image that this browser can read.`;
    }
  }

  const pick = $("#vision-index");
  pick.max = total - 1;
  const position = slider(pick, $("#vision-number"), (value) => `${value + 1} of ${total}`, show);
  $("#vision-pick").firstElementChild.textContent = film ? "Recorded frame" : "Frame of a dream";
  $("#vision-random").addEventListener("click", () => {
    z = z.map(normal);
    for (const { latent, set } of sliders) set(z[latent]);
    edit();
  });
  $("#vision-reset").addEventListener("click", reset);
  $("#vision-file").addEventListener("change", (event) => open(event.target.files[0]));
  const drop = $("#vision");
  for (const kind of ["dragenter", "dragover"])
    drop.addEventListener(kind, (event) => (event.preventDefault(), $("#vision-drop").classList.add("drop")));
  for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => $("#vision-drop").classList.remove("drop"));
  drop.addEventListener("drop", (event) => (event.preventDefault(), open(event.dataTransfer.files[0])));
  position(Math.floor(total / 3));
  show(Math.floor(total / 3));
  return { latents: sliders.map(({ latent }) => latent) };
}

/** Frames of a dream, every eighth step. */
function dreamed(world, about) {
  const dream = world.dream({ seed: 1 }), frames = [];
  for (let at = 0; at < 8 * SAMPLED; at++) {
    if (at % 8 === 0) frames.push(world.decode(dream.z));
    const action = about.agents[0] ? dream.act(about.agents[0]) : oneHot(about);
    if (dream.step(action).terminated) break;
  }
  dream.free();
  return frames;
}
