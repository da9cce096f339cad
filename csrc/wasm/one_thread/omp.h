// OpenMP of one thread.
#pragma once

inline int omp_get_thread_num() {
    return 0;
}
