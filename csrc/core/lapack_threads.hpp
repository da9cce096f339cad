// A scope in which the loaded OpenBLAS uses one thread.
#pragma once

namespace worldmodels {

// OpenBLAS's bits depend on its number of threads, so a run would depend on OPENBLAS_NUM_THREADS. Its threads
// also wait by spinning: next to another busy process, dsyevd at N = 1088 took 9 s with two threads and 0.16
// s with one. Other LAPACK libraries are not changed. Scopes may overlap, in any number of threads.
class SingleLapackThread {
  public:
    SingleLapackThread();
    ~SingleLapackThread();
    SingleLapackThread(const SingleLapackThread&) = delete;
    SingleLapackThread& operator=(const SingleLapackThread&) = delete;
};

}  // namespace worldmodels
