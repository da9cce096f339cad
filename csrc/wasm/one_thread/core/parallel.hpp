// The core's loops on one thread, in the place of core/parallel.hpp.
#pragma once

namespace worldmodels {

inline void check_not_forked(int) {}

inline int threads_for(int, int) {
    return 1;
}

template <class Work>
void parallel_for_blocks(int blocks, int, const Work& work) {
    for (int block = 0; block < blocks; ++block) work(block, 0);
}

}  // namespace worldmodels
