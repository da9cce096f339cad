// Thread safety of objects: a fork-aware lock for their state, a pool for their scratch memory.
#pragma once

#include <unistd.h>

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <stdexcept>

namespace worldmodels {

// A mutex that stores the process id of its holder. A fork copies a locked mutex but not the thread that
// would unlock it: in the child, lock throws std::runtime_error instead of waiting forever.
class Lock {
  public:
    bool try_lock() {
        pid_t free = kFree;
        return holder_.compare_exchange_strong(free, getpid(), std::memory_order_acquire);
    }
    void lock() {
        while (!try_lock()) {
            const pid_t holder = holder_.load(std::memory_order_relaxed);
            if (holder == kFree) continue;
            if (holder != getpid())
                throw std::runtime_error(
                    "this process was forked while another thread was using this object, whose state is "
                    "therefore unknown here: create objects in the forked process, or start workers with the "
                    "'spawn' method");
            holder_.wait(holder, std::memory_order_relaxed);
        }
    }
    void unlock() {
        holder_.store(kFree, std::memory_order_release);
        holder_.notify_one();
    }

  private:
    static constexpr pid_t kFree = 0;
    std::atomic<pid_t> holder_{kFree};
};

// An object with the lock that serializes its calls.
template <class T>
struct Guarded {
    T object;
    Lock lock;
};

// Scratch memory borrowed per call, so that concurrent calls never share any. Lock-free: a fork at any moment
// leaves it usable in the child.
template <class T>
class Pool {
    struct Return {
        Pool* pool;
        void operator()(T* item) const {
            for (std::atomic<T*>& slot : pool->slots_) {
                T* empty = nullptr;
                if (slot.compare_exchange_strong(empty, item, std::memory_order_release)) return;
            }
            delete item;
        }
    };

  public:
    using Loan = std::unique_ptr<T, Return>;

    Pool() = default;
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;
    ~Pool() {
        for (std::atomic<T*>& slot : slots_) delete slot.load();
    }

    // Exclusive until the loan ends; holds what an earlier call left, or is new.
    Loan borrow() {
        for (std::atomic<T*>& slot : slots_)
            if (T* const kept = slot.exchange(nullptr, std::memory_order_acquire)) return {kept, {this}};
        return {new T, {this}};
    }

  private:
    std::array<std::atomic<T*>, 16> slots_{};
};

}  // namespace worldmodels
