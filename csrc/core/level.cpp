// The SIMD level in use.
#include "core/level.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace worldmodels {
namespace {

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

std::vector<std::string> level_names() {
    const Levels levels = supported_levels();
    std::vector<std::string> names;
    for (std::size_t i = 0; i < levels.count; ++i) names.emplace_back(levels.begin[i]->name);
    return names;
}

const Kernels& find_level(const std::string& name, const std::string& source) {
    const Levels levels = supported_levels();
    std::string known;
    for (std::size_t i = 0; i < levels.count; ++i) {
        if (levels.begin[i]->name == name) return *levels.begin[i];
        known += (i > 0 ? ", " : "") + std::string(levels.begin[i]->name);
    }
    throw std::invalid_argument(source + ": expected one of " + known +
                                " (what this machine can run), got '" + name + "'");
}

const Kernels& current_level() {
    if (const Kernels* level = chosen.load()) return *level;
    const Levels levels = supported_levels();
    const char* const forced = std::getenv("WORLDMODELS_SIMD");
    const Kernels* const level = forced != nullptr && *forced != '\0'
                                     ? &find_level(forced, "WORLDMODELS_SIMD")
                                     : levels.begin[levels.count - 1];
    const Kernels* before = nullptr;  // what set_level has chosen meanwhile stays chosen
    return chosen.compare_exchange_strong(before, level) ? *level : *before;
}

void set_level(const std::string& name) {
    chosen.store(&find_level(name, "name"));
}

}  // namespace worldmodels
