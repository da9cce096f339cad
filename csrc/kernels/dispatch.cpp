// The SIMD targets that this machine can run.
#include "kernels/simd_targets.hpp"

namespace worldmodels {

SimdTargets supported_simd_targets() {
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
        for (const Kernels* target : known)
            if (target->supported()) usable[n++] = target;
        return n;
    }();
    return {usable, count};
}

}  // namespace worldmodels
