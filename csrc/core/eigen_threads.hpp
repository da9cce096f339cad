// Holds a loaded OpenBLAS to one thread while it lives.
#pragma once

namespace worldmodels {

// Why: OpenBLAS's bits depend on its number of threads, so that a run would depend on OPENBLAS_NUM_THREADS;
// and its threads wait by spinning, so that on a machine with another busy process dsyevd at N = 1088 took 9
// s with two threads, 0.16 s with one. A LAPACK that is not OpenBLAS is left as it is. Several may live at
// once, in several threads.
class OneLapackThread {
  public:
    OneLapackThread();
    ~OneLapackThread();
    OneLapackThread(const OneLapackThread&) = delete;
    OneLapackThread& operator=(const OneLapackThread&) = delete;
};

}  // namespace worldmodels
