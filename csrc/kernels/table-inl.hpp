// A SIMD target's entry of the dispatch table.

// The numbers of lanes of which a step computes none in vain, as bits.
constexpr std::uint32_t full_widths() {
    std::uint32_t widths = 0;
    for (int lanes = 1; lanes <= kBlock; ++lanes)
        if (lanes <= kNarrowLanes ? narrow_lanes(lanes) == lanes : lanes % kLanes == 0)
            widths |= std::uint32_t{1} << (lanes - 1);
    return widths;
}

constexpr Kernels simd_target(const char* name, bool (*supported_here)()) {
    return {
        .name = name,
        .lanes = kLanes,
        .widths = full_widths(),
        .widths_bfloat16 = 0,
        .supported = supported_here,
        .step = step_lanes<Float32>,
        .step_bfloat16 = nullptr,
        .act = act_lanes,
        .lstm_step = lstm_step_lanes<Float32>,
        .convolve = convolve,
        .convolve_frame = convolve_frame,
        .decode_frame = decode_frame,
        .initial_latent = initial_latent,
        .tile_product = tile_product,
        .normals = normals,
        .resize_columns = resize_columns,
        .resize_rows = resize_rows,
        .multiply_adds = multiply_adds<Float32>,
        .multiply_adds_bfloat16 = nullptr,
        .conv = conv_training_kernels<Float32>(),
        .conv_bfloat16 = nullptr,
        .rnn = rnn_kernels<Float32>(),
        .rnn_bfloat16 = nullptr,
        .testing = {.elementwise = elementwise,
                    .draws = draws,
                    .conv_bfloat16 = conv_training_kernels<EmulatedBfloat16>(),
                    .rnn_bfloat16 = rnn_kernels<EmulatedBfloat16>()},
    };
}
