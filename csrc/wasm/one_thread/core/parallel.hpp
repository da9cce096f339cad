// The core's loops on one thread, in the place of core/parallel.hpp.
#pragma once

namespace worldmodels {

inline void check_not_forked(int) {}

inline int threads_for(int, int) {
    return 1;
}

struct Poll {};

// Never interrupted.
struct InterruptiblePool {
    explicit InterruptiblePool(Poll) {}
    bool stopped() const { return false; }
};

template <class Work>
void parallel_for_blocks(int blocks, int, const InterruptiblePool&, const Work& work) {
    for (int block = 0; block < blocks; ++block) work(block, 0);
}

}  // namespace worldmodels
