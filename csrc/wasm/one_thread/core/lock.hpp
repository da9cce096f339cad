// Scratch memory of one thread, in the place of core/lock.hpp.
#pragma once

namespace worldmodels {

template <class T>
class Pool {
  public:
    T* borrow() { return &item_; }

  private:
    T item_{};
};

}  // namespace worldmodels
