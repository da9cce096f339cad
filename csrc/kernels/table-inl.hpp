// A SIMD target's entry of the dispatch table.

constexpr Kernels simd_target(const char* name, bool (*supported_here)()) {
    return {
        .name = name,
        .lanes = kLanes,
        .supported = supported_here,
        .step = step_lanes<Float32>,
        .step_bfloat16 = nullptr,
        .lstm_step = lstm_step_lanes<Float32>,
        .convolve = convolve,
        .convolve_frame = convolve_frame,
        .initial_latent = initial_latent,
        .tile_product = tile_product,
        .normals = normals,
        .multiply_adds = multiply_adds<Float32>,
        .multiply_adds_bfloat16 = nullptr,
        .rnn = rnn_kernels<Float32>(),
        .rnn_bfloat16 = nullptr,
        .testing = {.elementwise = elementwise,
                    .draws = draws,
                    .rnn_bfloat16 = rnn_kernels<EmulatedBfloat16>()},
    };
}
