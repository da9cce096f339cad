// Which levels this machine can run.
#include "kernels/levels.hpp"

namespace worldmodels {

Levels supported_levels() {
    static constexpr const Kernels* known[] = {
        &baseline_kernels,
#if defined(__x86_64__)
        &avx2_kernels,
        &avx512_kernels,
        &avx512_bf16_kernels,
#elif defined(__aarch64__)
        &neon_kernels,
#endif
    };
    static const Kernels* usable[sizeof known / sizeof known[0]];
    static const std::size_t count = [] {
        std::size_t n = 0;
        for (const Kernels* level : known)
            if (level->supported()) usable[n++] = level;
        return n;
    }();
    return {usable, count};
}

}  // namespace worldmodels
