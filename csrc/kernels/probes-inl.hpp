// Kernels of tests alone: the elementary functions and the random draws of a step.

void draws(const std::uint32_t key[2], std::uint32_t candidate, std::uint32_t episode, std::uint32_t step,
           std::uint32_t count, float* out) {
    for (std::uint32_t first = 0; first < count; first += kLanes) {
        const Draws d = draw(counting(first), splat_bits(step), splat_bits(episode), splat_bits(candidate),
                             key[0], key[1]);
        for (std::uint32_t lane = 0; lane < kLanes && first + lane < count; ++lane)
            for (std::uint32_t j = 0; j < 2; ++j) {
                out[j * count + first + lane] = d.normal[j][lane];
                out[(2 + j) * count + first + lane] = d.uniform[j][lane];
            }
    }
}

inline VecF apply(Function f, VecF x) {
    VecF sine, cosine;
    switch (f) {
        case Function::exp:
            return exp(x);
        case Function::log:
            return log(x);
        case Function::tanh:
            return tanh(x);
        case Function::sin_turns:
            sincos_turns(x, sine, cosine);
            return sine;
        case Function::cos_turns:
            sincos_turns(x, sine, cosine);
            return cosine;
    }
    return x;
}

void elementwise(Function f, const float* in, float* out, std::size_t count) {
    for (std::size_t i = 0; i < count; i += kLanes) {
        const std::size_t n = count - i < kLanes ? count - i : kLanes;
        VecF x = VecF{};
        __builtin_memcpy(&x, in + i, n * sizeof(float));
        x = apply(f, x);
        __builtin_memcpy(out + i, &x, n * sizeof(float));
    }
}
