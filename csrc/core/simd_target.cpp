// The SIMD target in use: chosen at the first call, by the environment or by set_simd_target.
#include "core/simd_target.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace worldmodels {
namespace {

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

std::vector<std::string> simd_target_names() {
    const SimdTargets targets = supported_simd_targets();
    std::vector<std::string> names;
    for (std::size_t i = 0; i < targets.count; ++i) names.emplace_back(targets.begin[i]->name);
    return names;
}

const Kernels& find_simd_target(const std::string& name, const std::string& argument) {
    const SimdTargets targets = supported_simd_targets();
    std::string known;
    for (std::size_t i = 0; i < targets.count; ++i) {
        if (targets.begin[i]->name == name) return *targets.begin[i];
        known += (i > 0 ? ", " : "") + std::string(targets.begin[i]->name);
    }
    throw std::invalid_argument(argument + ": expected one of " + known +
                                " (what this machine can run), got '" + name + "'");
}

const Kernels& current_simd_target() {
    if (const Kernels* target = chosen.load()) return *target;
    const SimdTargets targets = supported_simd_targets();
    const char* const forced = std::getenv("WORLDMODELS_SIMD");
    const Kernels* const target = forced != nullptr && *forced != '\0'
                                      ? &find_simd_target(forced, "WORLDMODELS_SIMD")
                                      : targets.begin[targets.count - 1];
    const Kernels* before = nullptr;  // a concurrent set_simd_target takes precedence
    return chosen.compare_exchange_strong(before, target) ? *target : *before;
}

void set_simd_target(const std::string& name) {
    chosen.store(&find_simd_target(name, "name"));
}

}  // namespace worldmodels
