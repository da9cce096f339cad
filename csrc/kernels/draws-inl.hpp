// The random draws of a dream, by Philox and Box-Muller.

// Philox4x32-10 (Salmon et al. 2011) on a vector of counters; the key is one for all lanes or a vector.
template <class Key>
inline void philox(VecU counter[4], Key key0, Key key1) {
    for (int round = 0; round < 10; ++round) {
        const VecU low0 = counter[0] * 0xD2511F53U, high0 = high_product(counter[0], 0xD2511F53U);
        const VecU low1 = counter[2] * 0xCD9E8D57U, high1 = high_product(counter[2], 0xCD9E8D57U);
        counter[0] = high1 ^ counter[1] ^ key0;
        counter[1] = low1;
        counter[2] = high0 ^ counter[3] ^ key1;
        counter[3] = low0;
        key0 += 0x9E3779B9U;
        key1 += 0xBB67AE85U;
    }
}

// The upper 24 bits of a word as a float in [0, 1).
inline VecF unit(VecU word) {
    return to_float(reinterpret_cast<VecI>(word >> 8)) * 5.9604645e-08F;
}

// The draws of two latent dimensions in one step: two normals (Box-Muller on words 0 and 1) and two uniforms
// in [0, 1).
struct Draws {
    VecF normal[2], uniform[2];
};
template <class Key>
inline Draws draw(VecU block, VecU step, VecU episode, VecU candidate, Key key0, Key key1) {
    VecU words[4] = {block, step, episode, candidate};
    philox(words, key0, key1);
    const VecF radius =
        sqrt(log(unit(words[0]) + 5.9604645e-08F) * -2.0F);  // the logarithm's argument is in (0, 1]
    VecF sine, cosine;
    sincos_turns(unit(words[1]), sine, cosine);
    return {{radius * cosine, radius * sine}, {unit(words[2]), unit(words[3])}};
}

// z (latent) = mu + exp(logvar / 2) * normal: the first latent of an episode.
inline void initial_latent(const std::uint32_t key[2], std::uint32_t candidate, std::uint32_t episode,
                           int latent, const float* mu, const float* logvar, float* z) {
    for (int first = 0; first < latent; first += 2 * kLanes) {
        const Draws d = draw(counting(static_cast<std::uint32_t>(first / 2)), VecU{}, splat_bits(episode),
                             splat_bits(candidate), key[0], key[1]);
        for (int j = 0; j < 2; ++j) {
            VecF mean = VecF{}, spread = VecF{};
            for (int lane = 0, i = first + j; lane < kLanes && i < latent; ++lane, i += 2) {
                mean[lane] = mu[i];
                spread[lane] = logvar[i];
            }
            const VecF out = fma(exp(spread * 0.5F), d.normal[j], mean);
            for (int lane = 0, i = first + j; lane < kLanes && i < latent; ++lane, i += 2) z[i] = out[lane];
        }
    }
}
