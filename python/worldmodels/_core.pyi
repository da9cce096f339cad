"""Types of the native core; mirrors csrc/bindings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

FloatArray = npt.NDArray[np.float32]

# --- dream (bind_dream.cpp) ---

LOGSTD_RANGE: tuple[float, float]

def simd_levels() -> list[str]: ...
def simd_level() -> str: ...
def set_simd_level(name: str) -> None: ...
def multiply_add_rate(bfloat16: bool, num_threads: int, seconds: float) -> float: ...
def check_threads_usable() -> None: ...

class WorldModel:
    def __init__(
        self,
        *,
        latent_size: int,
        action_size: int,
        hidden_size: int,
        mixtures: int,
        restart_input: bool,
        done_head: bool,
        reward_head: bool,
        bfloat16: bool,
        weight_ih: FloatArray,
        weight_hh: FloatArray,
        bias: FloatArray,
        head_weight: FloatArray,
        head_bias: FloatArray,
        initial_mu: FloatArray,
        initial_logvar: FloatArray,
        initial_h: FloatArray | None = None,
        initial_c: FloatArray | None = None,
        termination: str = "threshold",
        done_pos_weight: float = 1.0,
    ) -> None: ...

class ControllerShape:
    def __init__(
        self, model: WorldModel, features: str, bias: bool, hidden_units: int, carracing: bool, choices: Sequence[int]
    ) -> None: ...

def rollout(
    model: WorldModel,
    controller: ControllerShape,
    params: FloatArray,
    *,
    episodes: int,
    seed: int,
    common_random_numbers: bool,
    temperature: float,
    max_steps: int,
    num_threads: int,
    first_candidate: int,
    first_episode: int,
) -> tuple[FloatArray, npt.NDArray[np.int32], int]: ...
def trace(
    model: WorldModel,
    controller: ControllerShape,
    params: FloatArray,
    *,
    candidate: int,
    episode: int,
    seed: int,
    temperature: float,
    max_steps: int,
) -> tuple[int, FloatArray, FloatArray, FloatArray | None, FloatArray]: ...

class DreamStepper:
    def __init__(self, model: WorldModel, num_envs: int) -> None: ...
    def reset(
        self,
        seeds: npt.NDArray[np.uint64],
        candidates: npt.NDArray[np.uint32],
        episodes: npt.NDArray[np.uint32],
        mask: npt.NDArray[np.bool_],
    ) -> None: ...
    def step(
        self, temperature: float, actions: FloatArray, use_c: bool, use_h: bool, num_threads: int
    ) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]: ...
    def get_state(self) -> dict[str, NDArray[Any]]: ...
    def set_state(self, state: dict[str, NDArray[Any]]) -> None: ...
    def observe(self, mask: npt.NDArray[np.bool_], use_c: bool, use_h: bool, observations: FloatArray) -> None: ...

class LstmState:
    def __init__(self, model: WorldModel) -> None: ...
    def advance(
        self,
        z: FloatArray,
        actions: FloatArray,
        restart: npt.NDArray[np.bool_],
        h: FloatArray,
        c: FloatArray,
        num_threads: int,
    ) -> tuple[FloatArray, FloatArray]: ...

# --- compression of frames (bind_compression.cpp) ---

def compress_frames(
    frames: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.bool_]]: ...

# --- resizing of screens (bind_screen.cpp) ---

class ScreenResizer:
    def __init__(self, height: int, width: int) -> None: ...
    def resize(self, screen: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]: ...

# --- training (bind_conv_training.cpp, bind_rnn_training.cpp) ---

class ConvTraining:
    def __init__(self, *, side: int, channels: int, filters: int, kernel: int) -> None: ...
    def convolve(
        self,
        images: FloatArray,
        weights: FloatArray,
        bias: FloatArray | None,
        *,
        relu: bool,
        precision: str,
        num_threads: int,
    ) -> FloatArray: ...
    def transpose(
        self,
        features: FloatArray,
        weights: FloatArray,
        bias: FloatArray | None,
        *,
        relu: bool,
        precision: str,
        num_threads: int,
    ) -> FloatArray: ...
    def weight_gradient(
        self, images: FloatArray, features: FloatArray, *, precision: str, num_threads: int
    ) -> FloatArray: ...

def relu_backward(output: FloatArray, gradient: FloatArray, *, num_threads: int) -> tuple[FloatArray, FloatArray]: ...

class RNNTraining:
    def __init__(
        self,
        latent_size: int,
        action_size: int,
        hidden_size: int,
        mixtures: int,
        restart_input: bool,
        done_head: bool,
        reward_head: bool,
    ) -> None: ...
    def run(
        self,
        *,
        weights: list[FloatArray],
        z: FloatArray,
        action: FloatArray,
        restart: FloatArray | None,
        has_next: FloatArray,
        done: FloatArray | None,
        termination_known: FloatArray | None,
        reward: FloatArray | None,
        valid: FloatArray | None,
        h: FloatArray,
        c: FloatArray,
        scales: list[float],
        done_pos_weight: float,
        precision: str,
        gradient: bool,
        num_threads: int,
    ) -> dict[str, Any]: ...

# --- V's encoder (bind_encoder.cpp) ---

class Encoder:
    def __init__(
        self,
        weights: list[FloatArray],
        biases: list[FloatArray],
        mu: FloatArray,
        mu_bias: FloatArray,
        logvar: FloatArray,
        logvar_bias: FloatArray,
    ) -> None: ...
    def encode(self, frames: npt.NDArray[np.uint8], num_threads: int) -> tuple[FloatArray, FloatArray]: ...

# --- V's decoder (bind_decoder.cpp) ---

class Decoder:
    def __init__(
        self, point: FloatArray, point_bias: FloatArray, weights: list[FloatArray], biases: list[FloatArray]
    ) -> None: ...
    def decode(self, z: FloatArray, num_threads: int) -> npt.NDArray[np.uint8]: ...

# --- CMA-ES (bind_cmaes.cpp) ---

class Cmaes:
    gap: float
    def __init__(
        self, mean: NDArray[np.float64], sigma: float, popsize: int, seed: int, active: bool, separable: bool
    ) -> None: ...
    def ask(self, num_threads: int) -> NDArray[np.float64]: ...
    def tell(self, solutions: NDArray[np.float64], rank: NDArray[np.int64], num_threads: int) -> None: ...
    def skip(self) -> None: ...
    def variances(self) -> NDArray[np.float64]: ...
    def axis(self, k: int) -> NDArray[np.float64]: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...
    @property
    def mean(self) -> NDArray[np.float64]: ...
    @property
    def pc(self) -> NDArray[np.float64]: ...
    @property
    def ps(self) -> NDArray[np.float64]: ...
    @property
    def D(self) -> NDArray[np.float64]: ...
    @property
    def sigma(self) -> float: ...
    @property
    def generation(self) -> int: ...
    @property
    def asked(self) -> bool: ...
    @property
    def parameters(self) -> dict[str, Any]: ...

# --- tests alone (bind_testing.cpp): a submodule ---

class testing:
    @staticmethod
    def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]: ...
    @staticmethod
    def elementwise(level: str, function: str, x: FloatArray) -> FloatArray: ...
    @staticmethod
    def draws(level: str, seed: int, candidate: int, episode: int, step: int, count: int) -> FloatArray: ...
    @staticmethod
    def tile_product(level: str, a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]: ...
