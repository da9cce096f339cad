// An episode's first latent, and what tests ask of a level. Included inside an ISA's anonymous namespace.

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

void start(const std::uint32_t key[2], std::uint32_t candidate, std::uint32_t episode, int latent,
           const float* mu, const float* logvar, float* z) {
    for (int first = 0; first < latent; first += 2 * kLanes) {
        const Draws d = draw(counting(static_cast<std::uint32_t>(first / 2)), U{}, splat_bits(episode),
                             splat_bits(candidate), key[0], key[1]);
        for (int j = 0; j < 2; ++j) {
            V mean = V{}, spread = V{};
            for (int lane = 0, i = first + j; lane < kLanes && i < latent; ++lane, i += 2) {
                mean[lane] = mu[i];
                spread[lane] = logvar[i];
            }
            const V out = fma(exp(spread * 0.5F), d.normal[j], mean);
            for (int lane = 0, i = first + j; lane < kLanes && i < latent; ++lane, i += 2) z[i] = out[lane];
        }
    }
}

inline V apply(Function f, V x) {
    V sine, cosine;
    switch (f) {
        case Function::exp:
            return exp(x);
        case Function::log:
            return log(x);
        case Function::tanh:
            return tanh(x);
        case Function::sigmoid:
            return sigmoid(x);
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
        V x = V{};
        __builtin_memcpy(&x, in + i, n * sizeof(float));
        x = apply(f, x);
        __builtin_memcpy(out + i, &x, n * sizeof(float));
    }
}
