// Holds a loaded OpenBLAS to one thread while it lives.
#pragma once

namespace worldmodels {

// Why: OpenBLAS's bits depend on its number of threads, so that a run would depend on OPENBLAS_NUM_THREADS;
// and its threads wait by spinning, so that on a machine with another busy process dsyevd at N = 1088 took 9
// s with two threads, 0.16 s with one. A LAPACK that is not OpenBLAS is left as it is. Several may live at
// once, in several threads.
class SingleLapackThread {
  public:
    SingleLapackThread();
    ~SingleLapackThread();
    SingleLapackThread(const SingleLapackThread&) = delete;
    SingleLapackThread& operator=(const SingleLapackThread&) = delete;
};

}  // namespace worldmodels
