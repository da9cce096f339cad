// A level's entry of the dispatch table. Included last inside an ISA's anonymous namespace.

constexpr Kernels level(const char* name, bool (*supported_here)()) {
    return {
        .name = name,
        .lanes = kLanes,
        .supported = supported_here,
        .step = step_lanes<Float32>,
        .step_bfloat16 = nullptr,
        .remember = remember_lanes<Float32>,
        .convolve = convolve,
        .convolve_frame = convolve_frame,
        .start = start,
        .tile_product = tile_product,
        .normals = normals,
        .elementwise = elementwise,
        .draws = draws,
        .multiply_adds = multiply_adds<Float32>,
        .multiply_adds_bfloat16 = nullptr,
    };
}
