#include "fibers.h"

#include <cstdint>
#include <cstdlib>
#include <sys/mman.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace shim {
namespace {

constexpr size_t STACK = 256 * 1024; // pages are given by the system when touched, so most of it costs nothing
constexpr size_t GUARD = 64 * 1024;  // a multiple of every page size in use

Fiber* running = nullptr;

#if defined(__x86_64__)
// A dozen instructions; `swapcontext` makes two system calls. Only registers that a called function must keep count.
extern "C" void shim_switch(void** from, void* to);
asm(R"(
.text
.type shim_switch, @function
shim_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size shim_switch, . - shim_switch
)");

void* fresh_context(char* stack, void (*entry)()) {
    auto* top = reinterpret_cast<void**>(stack + STACK) - 2; // aligned to 16 where `ret` finds the entry
    *top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    return top;
}
void drop_context(void*) {}
void* outside_context() { return nullptr; } // `shim_switch` writes a fresh one
void jump(void** from, void* to) { shim_switch(from, to); }
#else
void* fresh_context(char* stack, void (*entry)()) {
    auto* context = new ucontext_t;
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = STACK;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}
void drop_context(void* context) { delete static_cast<ucontext_t*>(context); }
void* outside_context() { return new ucontext_t; }
void jump(void** from, void* to) { swapcontext(static_cast<ucontext_t*>(*from), static_cast<ucontext_t*>(to)); }
#endif

void before_switch([[maybe_unused]] void** keep, [[maybe_unused]] const void* stack, [[maybe_unused]] size_t size) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(keep, stack, size);
#endif
}

void after_switch([[maybe_unused]] void* kept, [[maybe_unused]] const void** stack, [[maybe_unused]] size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(kept, stack, size);
#endif
}

} // namespace

Fiber::Fiber(Body body, void* argument)
    : body_(body), argument_(argument), fake_stack_(nullptr), outer_stack_(nullptr), outer_size_(0) {
    void* memory = mmap(nullptr, GUARD + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, GUARD, PROT_NONE) != 0) abort();
    stack_ = static_cast<char*>(memory) + GUARD;
    context_ = fresh_context(stack_, &Fiber::enter);
    outside_ = outside_context();
}

Fiber::~Fiber() {
    ASAN_UNPOISON_MEMORY_REGION(stack_, STACK); // of frames that never returned
    munmap(stack_ - GUARD, GUARD + STACK);
    drop_context(context_);
#if !defined(__x86_64__)
    drop_context(outside_);
#endif
}

void Fiber::resume() {
    Fiber* outer = running;
    running = this;
    void* fake = nullptr;
    before_switch(&fake, stack_, STACK);
    jump(&outside_, context_);
    after_switch(fake, nullptr, nullptr);
    running = outer;
}

void Fiber::suspend() { running->switch_out(); }

void Fiber::switch_out() {
    before_switch(&fake_stack_, outer_stack_, outer_size_);
    jump(&context_, outside_);
    after_switch(fake_stack_, &outer_stack_, &outer_size_);
}

void Fiber::enter() {
    Fiber* self = running;
    after_switch(nullptr, &self->outer_stack_, &self->outer_size_);
    for (;;) {
        self->body_(self->argument_);
        self->switch_out();
    }
}

} // namespace shim
