/**
 * World models in the browser: dreams, V, controllers and CMA-ES by the native core, compiled to WebAssembly.
 *
 * Everything runs on one thread, without any request of its own. Needs WebAssembly with SIMD128 (Chrome 91, Firefox 89,
 * Safari 16.4, Node 16 or newer).
 *
 * @module worldmodels
 */

/** Side of a frame in pixels. */
export const SIDE = 64;

const FORMAT = "worldmodels-dream-1";
const FEATURES = ["z", "zh", "zc", "zch"];
const TERMINATIONS = ["threshold", "sample", "expected"];
const MAX_BYTES = 2 ** 30;

/** Error of this module: a damaged file, an invalid argument, or a browser without SIMD. Its message is for users. */
export class WorldModelError extends Error {
  /** @param {string} message */
  constructor(message) {
    super(message);
    this.name = "WorldModelError";
  }
}

/**
 * Shape of a controller, as `worldmodels.Controller` of the Python package.
 *
 * @typedef {object} ControllerShape
 * @property {"z"|"zh"|"zc"|"zch"} features Inputs of the controller.
 * @property {boolean} bias Whether the affine maps have a bias.
 * @property {number} hiddenUnits Width of the hidden layer; 0 for none.
 * @property {"tanh"|"carracing"|"argmax"} squash Output function. "argmax": the one-hot vectors of discrete actions.
 * @property {number[]} choices Number of values of each discrete action, for squash "argmax"; they add up to A. Default
 *   one action of A values.
 */

/**
 * Metadata of a world model.
 *
 * @typedef {object} Info
 * @property {string} task Name of the task, such as "takecover".
 * @property {number} latentSize Length Z of z.
 * @property {number} actionSize Length A of an action.
 * @property {number} hiddenSize Length H of the LSTM's h and c.
 * @property {number} mixtures Number K of mixture components.
 * @property {boolean} restartInput Whether M has the restart flag as an input.
 * @property {boolean} doneHead Whether M predicts termination.
 * @property {boolean} rewardHead Whether M predicts the reward; 1 for every step otherwise.
 * @property {number} donePosWeight Positive-class weight of M's termination loss.
 * @property {"threshold"|"sample"|"expected"} termination Termination of the dreams in which the agents were evolved.
 * @property {number} temperature Default temperature.
 * @property {number} maxSteps Maximum length of an episode, in steps.
 * @property {number} initialStates Number of initial states.
 * @property {{mean: number[], std: number[]}} latents Mean and standard deviation (Z) of V's means over initial frames.
 * @property {string[]} agents Names of the controllers of the file.
 * @property {Object<string, ControllerShape & {temperature: number}>} controllers Shapes of these controllers. The
 *   temperature is that of the dream in which the controller was evolved.
 */

/**
 * One step of a dream.
 *
 * @typedef {object} Step
 * @property {number} reward Reward of the step.
 * @property {boolean} terminated Whether M terminated the episode. With "expected" termination: whether the survival
 *   probability is below 1 %.
 * @property {boolean} truncated Whether the episode reached its maximum length without terminating.
 * @property {number} terminationProbability M's probability that the episode terminates with this step.
 * @property {number} survival Probability of no termination until this step.
 * @property {number} steps Steps of the episode so far.
 */

/**
 * Mixture density of one latent dimension.
 *
 * @typedef {object} Mixture
 * @property {Float32Array} weights (K) probabilities of the components, at the temperature of the step.
 * @property {Float32Array} means (K) means.
 * @property {Float32Array} stds (K) standard deviations, at the temperature of the step.
 * @property {number} sample The sampled value, which is `z[dimension]`.
 */

/**
 * A generation of CMA-ES.
 *
 * @typedef {object} Generation
 * @property {number} generation Number of completed generations.
 * @property {number} best Largest mean return of a candidate.
 * @property {number} mean Mean return over all candidates.
 * @property {number} worst Smallest mean return of a candidate.
 * @property {number} sigma Step size.
 * @property {number} steps Steps of all episodes of this generation.
 */

/** A world model: V, M, the initial states of its dreams, and controllers. Create it by {@link WorldModel.load}. */
export class WorldModel {
  /** @type {Core} */ #core;
  #pointers;
  #agents = new Map();

  /** @private Use {@link WorldModel.load}. */
  constructor(core, info, pointers) {
    this.#core = core;
    this.#pointers = pointers;
    /** @type {Info} */
    this.info = info;
  }

  /**
   * Load a world model.
   *
   * @param {object} files
   * @param {ArrayBuffer|Uint8Array|Response|Promise<Response>|WebAssembly.Module} files.wasm The file dream.wasm.
   * @param {ArrayBuffer|Uint8Array} files.weights The file dream.safetensors.
   * @returns {Promise<WorldModel>}
   * @throws {WorldModelError} The browser has no SIMD, or a file is damaged.
   */
  static async load({ wasm, weights }) {
    const file = await readBundle(weights); // before anything is compiled
    const core = await Core.load(wasm);
    const { info } = file;
    const { latentSize, hiddenSize, actionSize, mixtures } = info;
    const put = (name, size) => core.floats(file.tensor(name, size));
    const pointers = {};
    const gates = 4 * hiddenSize;
    const headRows = Number(info.doneHead) + Number(info.rewardHead) + 3 * latentSize * mixtures;
    const rnn = [
      put("rnn.weight_ih", gates * (latentSize + actionSize + Number(info.restartInput))),
      put("rnn.weight_hh", gates * hiddenSize),
      put("rnn.bias", gates),
      put("rnn.head_weight", headRows * hiddenSize),
      put("rnn.head_bias", headRows),
    ];
    const initial = ["mu", "logvar"].map((name) => put(`initial.${name}`, info.initialStates * latentSize));
    const flags = [info.restartInput, info.doneHead, info.rewardHead].map(Number);
    pointers.world = core.call(
      "world_create", latentSize, actionSize, hiddenSize, mixtures, ...flags, info.donePosWeight, ...rnn, ...initial, info.initialStates,
    );
    core.release(...rnn, ...initial);
    for (const [part, sizes] of Object.entries(layerSizes(latentSize))) {
      const layers = Object.entries(sizes).flatMap(([layer, [weights, biases]]) => [
        put(`${part}.${layer}.weight`, weights),
        put(`${part}.${layer}.bias`, biases),
      ]);
      pointers[part] = core.call(`${part}_create`, latentSize, ...layers);
      core.release(...layers);
    }
    pointers.z = core.allocate(4 * latentSize);
    pointers.logvar = core.allocate(4 * latentSize);
    pointers.frame = core.allocate(4 * SIDE * SIDE);
    const world = new WorldModel(core, info, pointers);
    for (const name of info.agents) world.setAgent(name, file.tensor(`agents.${name}`), info.controllers[name]);
    return world;
  }

  /**
   * Decode a latent to a frame.
   *
   * @param {ArrayLike<number>} z (Z) latent.
   * @returns {Uint8ClampedArray} (64 * 64 * 4) RGBA, as `new ImageData(frame, 64, 64)` takes it.
   */
  decode(z) {
    const { decoder, z: latent, frame } = this.#pointers;
    this.#core.write(latent, finite("z", z, this.info.latentSize));
    this.#core.call("decode", decoder, latent, frame);
    return this.#core.bytes(frame, 4 * SIDE * SIDE).slice();
  }

  /**
   * Encode a frame.
   *
   * @param {ArrayLike<number>} rgba (64 * 64 * 4) pixels; alpha is ignored.
   * @returns {{mu: Float32Array, logvar: Float32Array}} (Z) each.
   */
  encode(rgba) {
    if (rgba?.length !== 4 * SIDE * SIDE) {
      throw new WorldModelError(`rgba: expected ${4 * SIDE * SIDE} numbers (64 x 64 RGBA), got ${rgba?.length}`);
    }
    const { encoder, z, logvar, frame } = this.#pointers;
    const pixels = this.#core.bytes(frame, 3 * SIDE * SIDE);
    for (let i = 0; i < SIDE * SIDE; ++i) {
      for (let c = 0; c < 3; ++c) pixels[3 * i + c] = rgba[4 * i + c];
    }
    this.#core.call("encode", encoder, frame, z, logvar);
    return { mu: this.#core.read(z, this.info.latentSize), logvar: this.#core.read(logvar, this.info.latentSize) };
  }

  /**
   * Create a dream and start its first episode.
   *
   * @param {object} [settings]
   * @param {number|bigint} [settings.seed] Seed of all random numbers, from 0 to 2^64 - 1. Default 0.
   * @param {number} [settings.temperature] Temperature of the sampling, at least 0. Default `info.temperature`.
   * @param {"threshold"|"sample"|"expected"} [settings.termination] As `Dream` of the Python package has it: by M's
   *   logit, sampled with M's probability, or never before the survival probability is below 1 %. Default "sample", or
   *   "threshold" for a world model whose `info.termination` is that.
   * @param {number} [settings.maxSteps] Maximum length of an episode, in steps. Default `info.maxSteps`.
   * @returns {Dream}
   */
  dream(settings = {}) {
    return new Dream(this.#core, this.#pointers.world, this.info, this.#agents, settings);
  }

  /**
   * Create a CMA-ES search for a controller that maximizes the return in the dream.
   *
   * The search is `CMAES(x0, sigma0, popsize=popsize, seed=seed, separable=true)` of the Python package, started at
   * zero. A generation is `Dream.rollout(solutions, episodes, seed=seed + generation, common_random_numbers=True)`, where
   * `generation` counts from 1.
   *
   * @param {object} [settings]
   * @param {number} [settings.popsize] Number of candidates, at least 2. Default 16.
   * @param {number} [settings.episodes] Episodes per candidate. Default 4.
   * @param {number} [settings.sigma0] Initial step size. Default 0.1.
   * @param {number} [settings.temperature] Temperature of the dreams. Default `info.temperature`.
   * @param {number} [settings.maxSteps] Maximum length of an episode, in steps. Default `info.maxSteps`.
   * @param {"threshold"|"sample"|"expected"} [settings.termination] Default `info.termination`.
   * @param {"z"|"zh"|"zc"|"zch"} [settings.features] Inputs of the controller. Default "zch".
   * @param {"tanh"|"carracing"|"argmax"} [settings.squash] Output function. Default that of the first agent.
   * @param {number[]} [settings.choices] Number of values of each discrete action, for squash "argmax". Default those of
   *   the first agent.
   * @param {number|bigint} [settings.seed] Seed of the search and of the dreams. Default 0.
   * @returns {Evolution}
   */
  evolution(settings = {}) {
    return new Evolution(this.#core, this.#pointers.world, this.info, settings);
  }

  /** Names of the controllers. */
  get agents() {
    return [...this.#agents.keys()];
  }

  /**
   * Add or replace a controller, which `dream.act(name)` then evaluates.
   *
   * @param {string} name
   * @param {ArrayLike<number>} parameters Flat parameters in the order of `Controller` of the Python package.
   * @param {Partial<ControllerShape>} [shape] Default: inputs [z, c, h], linear without bias, tanh.
   */
  setAgent(name, parameters, shape = {}) {
    const of = controllerShape(shape, this.info);
    const values = finite("parameters", parameters, controllerSize(of, this.info));
    const before = this.#agents.get(name);
    if (before) this.#core.release(before.parameters, before.choices);
    const copies = { parameters: this.#core.floats(values), choices: this.#core.integers(of.choices) };
    this.#agents.set(name, { shape: of, ...copies });
  }
}

/**
 * A dream: episodes inside M, one at a time. Create it by {@link WorldModel#dream}.
 *
 * With a controller of the file, its steps are those of `Dream.trace` of the Python package at the SIMD level
 * "baseline", bit for bit.
 */
export class Dream {
  /** @type {Core} */ #core;
  #agents;
  #info;
  #dream;
  #io;
  #temperature;
  #drawnAt;
  #steps = 0;
  #survival = 1;

  /** @private Use {@link WorldModel#dream}. */
  constructor(core, world, info, agents, { seed = 0, temperature = info.temperature, termination, maxSteps } = {}) {
    this.#core = core;
    this.#info = info;
    this.#agents = agents;
    this.temperature = temperature;
    /** Termination of the episodes. */
    this.termination = choice(
      "termination", termination ?? (info.termination === "threshold" || !info.doneHead ? "threshold" : "sample"),
      TERMINATIONS,
    );
    /** Maximum length of an episode, in steps; may be changed. */
    this.maxSteps = integer("maxSteps", maxSteps ?? info.maxSteps, 1);
    this.#dream = core.call("dream_create", world, TERMINATIONS.indexOf(this.termination));
    // One buffer for all calls: the action, z, c, h, a mixture, then two doubles.
    const floats = info.actionSize + info.latentSize + 2 * info.hiddenSize + 3 * info.mixtures;
    this.#io = core.allocate(8 * 2 + 4 * floats);
    this.reset(seed);
  }

  /** Temperature of the sampling. It may be changed in flight. */
  get temperature() {
    return this.#temperature;
  }

  set temperature(value) {
    if (typeof value !== "number" || !(value >= 0) || !Number.isFinite(Math.fround(value))) {
      throw new WorldModelError(`temperature: expected a finite number of at least 0, got ${value}`);
    }
    this.#temperature = value;
  }

  /**
   * Start an episode.
   *
   * @param {number|bigint} [seed] Seed, from 0 to 2^64 - 1.
   * @param {number} [episode] Index of the episode in a rollout with this seed. Default 0.
   */
  reset(seed = this.seed, episode = 0) {
    const [low, high] = seedWords(seed);
    integer("episode", episode, 0, 2 ** 32 - 1);
    /** Seed of the episode. */
    this.seed = seed;
    this.#core.call("dream_reset", this.#dream, low, high, episode);
    this.#steps = 0;
    this.#survival = 1;
    this.#drawnAt = this.#temperature;
  }

  /**
   * Advance the episode by one step.
   *
   * @param {ArrayLike<number>} action (A) action; of discrete actions their one-hot vectors.
   * @returns {Step}
   */
  step(action) {
    const at = this.#io + 16;
    this.#core.write(at, finite("action", action, this.#info.actionSize));
    const done = this.#core.call("dream_step", this.#dream, this.#temperature, at, this.#io);
    const [reward, probability] = this.#core.doubles(this.#io, 2);
    this.#drawnAt = this.#temperature;
    ++this.#steps;
    this.#survival *= 1 - probability;
    const terminated = done !== 0;
    return {
      reward,
      terminated,
      truncated: !terminated && this.#steps >= this.maxSteps,
      terminationProbability: probability,
      survival: this.#survival,
      steps: this.#steps,
    };
  }

  /**
   * Compute the action of a controller, without a step.
   *
   * @param {string} name Name of the controller.
   * @returns {Float32Array} (A) action.
   */
  act(name) {
    const agent = this.#agents.get(name);
    if (!agent) {
      throw new WorldModelError(`agent: expected one of ${[...this.#agents.keys()].join(", ")}, got ${name}`);
    }
    const at = this.#io + 16;
    this.#core.call("dream_act", this.#dream, ...shapeArguments(agent.shape, agent.choices), agent.parameters, at);
    return this.#core.read(at, this.#info.actionSize);
  }

  /** Number of steps of the episode so far. */
  get steps() {
    return this.#steps;
  }

  /** Latent (Z), a copy. */
  get z() {
    return this.#state(0, this.#info.latentSize);
  }

  /** The LSTM's cell state (H), a copy. */
  get c() {
    return this.#state(this.#info.latentSize, this.#info.hiddenSize);
  }

  /** The LSTM's hidden state (H), a copy. */
  get h() {
    return this.#state(this.#info.latentSize + this.#info.hiddenSize, this.#info.hiddenSize);
  }

  #state(first, count) {
    const at = this.#io + 16 + 4 * this.#info.actionSize;
    this.#core.call("dream_state", this.#dream, at);
    return this.#core.read(at + 4 * first, count);
  }

  /**
   * Return the mixture density from which one dimension of the latent was sampled. Before the first step of an episode
   * that is the normal distribution of the initial state.
   *
   * @param {number} dimension
   * @returns {Mixture}
   */
  mixture(dimension) {
    const { latentSize, hiddenSize, actionSize, mixtures } = this.#info;
    integer("dimension", dimension, 0, latentSize - 1);
    const at = this.#io + 16 + 4 * (actionSize + latentSize + 2 * hiddenSize);
    const count = this.#core.call("dream_mixture", this.#dream, dimension, this.#drawnAt, at);
    const part = (number) => this.#core.read(at + 4 * number * mixtures, count);
    return { weights: part(0), means: part(1), stds: part(2), sample: this.z[dimension] };
  }

  /** Free the memory of the dream, which must not be used afterwards. */
  free() {
    this.#core.call("dream_free", this.#dream);
    this.#core.release(this.#io);
    this.#dream = 0;
  }
}

/** CMA-ES on the controller in the dream. Create it by {@link WorldModel#evolution}. */
export class Evolution {
  /** @type {Core} */ #core;
  #search;
  #io;
  #size;
  #choices;

  /** @private Use {@link WorldModel#evolution}. */
  constructor(core, world, info, settings = {}) {
    const first = info.controllers[info.agents[0]];
    const {
      popsize = 16, episodes = 4, sigma0 = 0.1, temperature = info.temperature, maxSteps = info.maxSteps,
      termination = info.termination, features = "zch", squash = first?.squash, seed = 0,
      choices = squash === first?.squash ? first?.choices : undefined,
    } = settings;
    this.#core = core;
    /** @type {ControllerShape} Shape of the controller. */
    this.shape = controllerShape({ features, squash, choices }, info);
    this.#size = controllerSize(this.shape, info);
    for (const [name, value, least] of [["sigma0", sigma0, Number.MIN_VALUE], ["temperature", temperature, 0]]) {
      if (typeof value !== "number" || !(value >= least) || !Number.isFinite(Math.fround(value))) {
        throw new WorldModelError(`${name}: expected a finite number of at least ${least}, got ${value}`);
      }
    }
    const [low, high] = seedWords(seed);
    this.#choices = core.integers(this.shape.choices);
    this.#search = core.call(
      "evolution_create", world, ...shapeArguments(this.shape, this.#choices),
      TERMINATIONS.indexOf(choice("termination", termination, TERMINATIONS)),
      integer("popsize", popsize, 2, 4096), integer("episodes", episodes, 1, 4096), sigma0, temperature,
      integer("maxSteps", maxSteps, 1), low, high,
    );
    this.#io = core.allocate(Math.max(4 * this.#size, 8 * 6));
    /** Mean returns of the candidates of the last completed generation, (popsize). */
    this.returns = new Float64Array(popsize);
  }

  /**
   * Work on the current generation for some time, so that a page can draw in between.
   *
   * @param {number} milliseconds Time after which to return.
   * @returns {Generation|null} The generation that was completed, or null.
   */
  run(milliseconds) {
    const end = performance.now() + milliseconds;
    let done;
    do done = this.#core.call("evolution_advance", this.#search, 1);
    while (!done && performance.now() < end);
    return done ? this.#summary() : null;
  }

  /**
   * Complete the current generation.
   *
   * @returns {Generation}
   */
  generation() {
    while (!this.#core.call("evolution_advance", this.#search, 1 << 20));
    return this.#summary();
  }

  #summary() {
    const [generation, sigma, steps] = this.#summaryOf();
    return {
      generation,
      best: Math.max(...this.returns),
      mean: this.returns.reduce((sum, value) => sum + value, 0) / this.returns.length,
      worst: Math.min(...this.returns),
      sigma,
      steps,
    };
  }

  #summaryOf() {
    const returns = this.#core.call("evolution_summary", this.#search, this.#io);
    this.returns = this.#core.doubles(returns, this.returns.length);
    return this.#core.doubles(this.#io, 3);
  }

  /** Mean of the search distribution: flat parameters for {@link WorldModel#setAgent} with {@link Evolution#shape}. */
  get parameters() {
    this.#core.call("evolution_mean", this.#search, this.#io);
    return this.#core.read(this.#io, this.#size);
  }

  /** Parameters of the best candidate of the last completed generation. */
  get bestParameters() {
    this.#core.call("evolution_best", this.#search, this.#io);
    return this.#core.read(this.#io, this.#size);
  }

  /** Free the memory of the search, which must not be used afterwards. */
  free() {
    this.#core.call("evolution_free", this.#search);
    this.#core.release(this.#io, this.#choices);
    this.#search = 0;
  }
}

/** The WebAssembly module and its memory. */
class Core {
  constructor(exports) {
    this.exports = exports;
  }

  static async load(wasm) {
    // (module (func (result v128) i32.const 0 i8x16.splat))
    const simd = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11];
    if (typeof WebAssembly !== "object" || !WebAssembly.validate(new Uint8Array(simd))) {
      throw new WorldModelError(
        "This browser has no WebAssembly SIMD: use Chrome 91, Firefox 89 or Safari 16.4, or a newer version.",
      );
    }
    let source = await wasm;
    if (typeof Response !== "undefined" && source instanceof Response) {
      if (!source.ok) throw new WorldModelError(`dream.wasm: the server answered ${source.status}`);
      source = await source.arrayBuffer();
    }
    let module;
    try {
      module = source instanceof WebAssembly.Module ? source : await WebAssembly.compile(source);
      const unused = () => 8; // output of the C library, to no file
      const imports = { fd_close: unused, fd_seek: unused, fd_write: unused };
      const instance = await WebAssembly.instantiate(module, { wasi_snapshot_preview1: imports });
      instance.exports._initialize?.();
      return new Core(instance.exports);
    } catch (error) {
      throw new WorldModelError(`dream.wasm: expected the file of this version, got ${error.message}`);
    }
  }

  call(name, ...values) {
    try {
      return this.exports[name](...values);
    } catch (error) {
      if (error instanceof WebAssembly.RuntimeError) throw new WorldModelError(`out of memory in ${name}`);
      throw error;
    }
  }

  allocate(bytes) {
    return this.call("allocate", bytes);
  }

  release(...pointers) {
    for (const pointer of pointers) this.call("release", pointer);
  }

  /** Copy floats to new memory. */
  floats(values) {
    const pointer = this.allocate(4 * values.length);
    this.write(pointer, values);
    return pointer;
  }

  /** Copy integers of 32 bits to new memory. */
  integers(values) {
    const pointer = this.allocate(4 * values.length);
    new Int32Array(this.exports.memory.buffer, pointer, values.length).set(values);
    return pointer;
  }

  write(pointer, values) {
    new Float32Array(this.exports.memory.buffer, pointer, values.length).set(values);
  }

  read(pointer, count) {
    return new Float32Array(this.exports.memory.buffer, pointer, count).slice();
  }

  doubles(pointer, count) {
    return new Float64Array(this.exports.memory.buffer, pointer, count).slice();
  }

  bytes(pointer, count) {
    return new Uint8ClampedArray(this.exports.memory.buffer, pointer, count);
  }
}

/** Numbers of weights and biases of the layers of V. */
function layerSizes(latentSize) {
  const encoder = {}, decoder = { 0: [3200 * latentSize, 3200] };
  [3, 32, 64, 128].forEach((channels, layer) => {
    const filters = 32 << layer;
    encoder[layer] = [filters * channels * 16, filters];
  });
  for (const name of ["mu", "logvar"]) encoder[name] = [1024 * latentSize, latentSize];
  [[128, 64, 5], [64, 32, 6], [32, 3, 6]].forEach(([channels, filters, kernel], layer) => {
    decoder[layer + 1] = [channels * filters * kernel * kernel, filters];
  });
  return { encoder, decoder };
}

/** Validate the file dream.safetensors and return its metadata and a reader of its tensors. */
async function readBundle(given) {
  const damaged = (what) => new WorldModelError(`dream.safetensors: ${what}. Download the file again.`);
  const isView = ArrayBuffer.isView(given);
  if (!isView && Object.prototype.toString.call(given) !== "[object ArrayBuffer]") {
    throw new WorldModelError(`weights: expected an ArrayBuffer or a Uint8Array, got ${typeof given}`);
  }
  const bytes = isView ? new Uint8Array(given.buffer, given.byteOffset, given.byteLength) : new Uint8Array(given);
  if (bytes.length < 8 || bytes.length > MAX_BYTES) throw damaged(`expected weights, got ${bytes.length} bytes`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = view.getUint32(0, true);
  if (view.getUint32(4, true) !== 0 || length > 2 ** 24) throw damaged("expected a safetensors file");
  const first = 8 + length;
  if (first > bytes.length) throw damaged(`the file is truncated: its header ends after ${bytes.length} bytes`);
  let header, metadata;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, first)));
    metadata = header.__metadata__ ?? {};
  } catch {
    throw damaged("expected a safetensors file");
  }
  if (metadata.format !== FORMAT) throw damaged(`expected the format ${FORMAT}, got ${metadata.format}`);
  const tensors = new Map(Object.entries(header).filter(([name]) => name !== "__metadata__"));
  const end = [...tensors.values()].reduce((last, tensor) => Math.max(last, tensor?.data_offsets?.[1] ?? 0), 0);
  if (first + end > bytes.length) {
    throw damaged(`the file is truncated: expected ${first + end} bytes, got ${bytes.length}`);
  }
  const expected = String(metadata.sha256);
  const head = bytes.slice(0, first);
  const at = new TextDecoder("latin1").decode(head).indexOf(`"${expected}"`);
  if (expected.length === 64 && at >= 0) head.fill(48, at + 1, at + 65); // hashed with zeros in its place
  if ((await digest(head, bytes.subarray(first))) !== expected) throw damaged("the file was altered: its SHA-256 does not match");
  const info = JSON.parse(metadata.info);
  const tensor = (name, size) => {
    const found = tensors.get(name);
    if (!found) throw damaged(`expected the tensor ${name}`);
    const [from, to] = found.data_offsets;
    if (size !== undefined && to - from !== size * (found.dtype === "F16" ? 2 : 4)) {
      throw damaged(`expected ${size} numbers in ${name}, got shape ${found.shape}`);
    }
    const data = bytes.buffer.slice(bytes.byteOffset + first + from, bytes.byteOffset + first + to);
    if (found.dtype === "F32") return new Float32Array(data);
    if (found.dtype === "F16") return fromFloat16(new Uint16Array(data));
    throw damaged(`expected F16 or F32 in ${name}, got ${found.dtype}`);
  };
  return { info, tensor };
}

/** Convert float16 to float32, exactly. */
function fromFloat16(halves) {
  const bits = new Uint32Array(halves.length);
  const floats = new Float32Array(bits.buffer);
  for (let i = 0; i < halves.length; ++i) {
    const half = halves[i];
    const exponent = (half >> 10) & 31;
    const mantissa = half & 1023;
    if (exponent === 0) floats[i] = (half & 0x8000 ? -1 : 1) * mantissa * 2 ** -24;
    else bits[i] = ((half & 0x8000) << 16) | ((exponent === 31 ? 255 : exponent + 112) << 23) | (mantissa << 13);
  }
  return floats;
}

/** SHA-256 of the joined parts, by the browser where it can, which is faster. */
async function digest(...parts) {
  if (!globalThis.crypto?.subtle) return sha256(...parts);
  const joined = await new Blob(parts).arrayBuffer();
  const found = new Uint8Array(await globalThis.crypto.subtle.digest("SHA-256", joined));
  return Array.from(found, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * SHA-256 (FIPS 180-4). `crypto.subtle` is missing in pages that were not loaded from a secure context.
 *
 * @param {...Uint8Array} parts Parts of the message.
 * @returns {string} 64 hexadecimal digits.
 */
export function sha256(...parts) {
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const padded = new Uint8Array((Math.floor((length + 8) / 64) + 1) * 64);
  let end = 0;
  for (const part of parts) {
    padded.set(part, end);
    end += part.length;
  }
  padded[length] = 0x80;
  const message = new DataView(padded.buffer);
  message.setUint32(padded.length - 8, Math.floor(length / 2 ** 29));
  message.setUint32(padded.length - 4, length * 8);

  const primes = [];
  for (let n = 2; primes.length < 64; ++n) if (primes.every((p) => n % p)) primes.push(n);
  const fraction = (x) => Math.floor((x - Math.floor(x)) * 2 ** 32) | 0;
  const k = Int32Array.from(primes, (p) => fraction(Math.cbrt(p)));
  const state = Int32Array.from(primes.slice(0, 8), (p) => fraction(Math.sqrt(p)));
  const w = new Int32Array(64);
  for (let block = 0; block < padded.length; block += 64) hashBlock(message, block, k, w, state);
  return Array.from(state, (word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
}

function hashBlock(message, block, k, w, state) {
  for (let t = 0; t < 16; ++t) w[t] = message.getInt32(block + 4 * t);
  for (let t = 16; t < 64; ++t) {
    const x = w[t - 15], y = w[t - 2];
    const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
    const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
    w[t] = w[t - 16] + s0 + w[t - 7] + s1;
  }
  let a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
  for (let t = 0; t < 64; ++t) {
    const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
    const t1 = (h + s1 + ((e & f) ^ (~e & g)) + k[t] + w[t]) | 0;
    const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
    const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    h = g;
    g = f;
    f = e;
    e = (d + t1) | 0;
    d = c;
    c = b;
    b = a;
    a = (t1 + t2) | 0;
  }
  state[0] += a;
  state[1] += b;
  state[2] += c;
  state[3] += d;
  state[4] += e;
  state[5] += f;
  state[6] += g;
  state[7] += h;
}

function controllerShape({ features = "zch", bias = false, hiddenUnits = 0, squash = "tanh", choices }, info) {
  choice("features", features, FEATURES);
  choice("squash", squash, ["tanh", "carracing", "argmax"]);
  if (squash === "carracing" && info.actionSize !== 3) {
    throw new WorldModelError(`squash: expected tanh for ${info.actionSize} actions, got carracing`);
  }
  const discrete = squash === "argmax", counts = [...(choices ?? (discrete ? [info.actionSize] : []))];
  const sum = counts.reduce((total, count) => total + integer("choices", count, 2), 0);
  if (sum !== (discrete ? info.actionSize : 0)) {
    throw new WorldModelError(`choices: expected a sum of ${discrete ? info.actionSize : 0} for ${squash}, got ${sum}`);
  }
  integer("hiddenUnits", hiddenUnits, 0, 4096);
  return { features, bias: Boolean(bias), hiddenUnits, squash, choices: counts };
}

function controllerSize({ features, bias, hiddenUnits }, { latentSize, hiddenSize, actionSize }) {
  const inputs = latentSize + hiddenSize * (features.length - 1);
  const layer = (rows, columns) => rows * (columns + Number(bias));
  return hiddenUnits ? layer(hiddenUnits, inputs) + layer(actionSize, hiddenUnits) : layer(actionSize, inputs);
}

function shapeArguments({ features, bias, hiddenUnits, squash, choices }, pointer) {
  const flags = [features.includes("c"), features.includes("h"), bias, squash === "carracing"];
  return [...flags.map(Number), hiddenUnits, pointer, choices.length];
}

function finite(name, values, length) {
  if (values?.length !== length) {
    throw new WorldModelError(`${name}: expected ${length} numbers, got ${values?.length}`);
  }
  const floats = Float32Array.from(values);
  if (!floats.every(Number.isFinite)) throw new WorldModelError(`${name}: expected finite numbers`);
  return floats;
}

function integer(name, value, low, high = 2 ** 31 - 1) {
  if (!Number.isInteger(value) || value < low || value > high) {
    throw new WorldModelError(`${name}: expected an integer from ${low} to ${high}, got ${value}`);
  }
  return value;
}

function choice(name, value, known) {
  if (!known.includes(value)) {
    throw new WorldModelError(`${name}: expected one of ${known.join(", ")}, got ${value}`);
  }
  return value;
}

/** Low and high word of a seed. */
function seedWords(seed) {
  const safe = typeof seed === "bigint" || Number.isSafeInteger(seed);
  const value = safe ? BigInt(seed) : -1n;
  if (value < 0n || value >= 1n << 64n) {
    throw new WorldModelError(`seed: expected an integer from 0 to 2^64 - 1, got ${seed}`);
  }
  return [Number(value & 0xffffffffn), Number(value >> 32n)];
}
