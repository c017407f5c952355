// Fibers: stacks that one operating-system thread switches between. AddressSanitizer is told of every switch.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace shim {

// A stack that runs `body` each time it is resumed after an end, and stands still between `suspend` and `resume`.
class Fiber {
  public:
    using Body = void (*)(void* argument);

    Fiber(Body body, void* argument);
    ~Fiber(); // also in the middle of the body: the frames on the stack are dropped, no destructor runs
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    void resume();         // from outside: run until the body suspends or ends
    static void suspend(); // from inside the body: back to whoever resumed

  private:
    [[noreturn]] static void enter();
    void switch_out();

    Body body_;
    void* argument_;
    char* stack_;            // usable bytes, above a page that nobody may touch
    void* context_;          // where this fiber stands; what it is depends on the processor
    void* outside_;          // where its resumer stands
    void* fake_stack_;       // AddressSanitizer's, of this fiber
    const void* outer_stack_; // of the resumer, as AddressSanitizer gave it
    size_t outer_size_;
};

} // namespace shim
