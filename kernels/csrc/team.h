// Threads. They are those of the OpenMP runtime that torch has loaded, entered through its C function, so that
// torch's threads and ours are one pool; this works for every compiler and needs no OpenMP when linking.
#pragma once

#include <atomic>
#include <cfenv>
#include <cstdint>
#include <thread>
#include <vector>

#include "machine.h"

namespace {

struct Runtime {
    void (*fork)(void (*)(void*), void*, unsigned, unsigned) = nullptr;  // GOMP_parallel
    int (*number)() = nullptr;                                           // omp_get_thread_num
    int (*count)() = nullptr;                                            // omp_get_num_threads
};
Runtime runtime;

// Rounding to nearest and no flushing of small numbers, whatever torch.set_flush_denormal says; put back at the end.
class DefaultArithmetic {
  public:
#if defined(__SSE2__)
    DefaultArithmetic() : kept(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~DefaultArithmetic() { _mm_setcsr(kept); }

  private:
    unsigned kept;
#else
    DefaultArithmetic() {
        std::fegetenv(&kept);
        std::fesetenv(FE_DFL_ENV);
    }
    ~DefaultArithmetic() { std::fesetenv(&kept); }

  private:
    std::fenv_t kept;
#endif
};

class Barrier {
  public:
    void wait(int size) {
        const int turn = turns.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            arrived.store(0, std::memory_order_relaxed);
            turns.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turns.load(std::memory_order_acquire) == turn; spins++)
            if (spins > 2000) std::this_thread::yield();  // somebody may be waiting for this core
    }

  private:
    std::atomic<int> arrived{0}, turns{0};
};

struct Team {
    int id, size;
    Barrier* barrier;

    void wait() const {
        if (size > 1) barrier->wait(size);
    }

    // This member's part of n things, as [first, last).
    int64_t first(int64_t n) const { return n * id / size; }
    int64_t last(int64_t n) const { return n * (id + 1) / size; }
};

// Call work(team) on up to `threads` threads at once.
template <class Work>
void in_parallel(int threads, Work&& work) {
    Barrier barrier;
    if (threads <= 1) {
        DefaultArithmetic arithmetic;
        work(Team{0, 1, &barrier});
        return;
    }
    if (runtime.fork) {
        struct Shared {
            Work* work;
            Barrier* barrier;
        } shared{&work, &barrier};
        runtime.fork(
            [](void* data) {
                DefaultArithmetic arithmetic;
                const Shared* shared = static_cast<Shared*>(data);
                (*shared->work)(Team{runtime.number(), runtime.count(), shared->barrier});
            },
            &shared, unsigned(threads), 0);
        return;
    }
    std::vector<std::thread> others;
    auto member = [&](int id) {
        DefaultArithmetic arithmetic;
        work(Team{id, threads, &barrier});
    };
    for (int id = 1; id < threads; id++) others.emplace_back(member, id);
    member(0);
    for (std::thread& other : others) other.join();
}

// Hands out 0, 1, 2, ... to whoever asks first.
class Counter {
  public:
    int64_t next() { return taken.fetch_add(1, std::memory_order_relaxed); }

  private:
    std::atomic<int64_t> taken{0};
};

}  // namespace
