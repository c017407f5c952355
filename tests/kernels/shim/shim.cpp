// The scheduler: runs the threads of one block after another, and finds out when they wait for each other in vain.
#include "shim.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "fibers.h"

uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {
namespace {

constexpr unsigned MAX_THREADS = 1024;
constexpr size_t GAP = 64; // bytes between shared arrays that nobody may touch
constexpr size_t MAX_ARRAYS = 32;

struct Copy {
    void* to;
    const void* from;
    size_t bytes, valid;
};

struct Thread {
    uint3 index;
    bool done;
    const char* waits_at; // null when it can run
    Where where;
    std::vector<std::vector<Copy>> groups; // copies not landed yet; the last group is open
};

struct Array {
    size_t offset, bytes, at;
};

std::map<std::string, Thunk>& kernels() {
    static std::map<std::string, Thunk> table;
    return table;
}

// --- state of the launch that runs; one at a time ------------------------------------------------------------------------
struct Launch {
    Thunk thunk;
    void** arguments;
    uint64_t random;
    std::vector<Thread> threads;
    std::vector<unsigned> ready;
    unsigned current, n_done, at_barrier, n_true;
    const char* barrier_name;
    Where barrier_where;
    int barrier_result;
    std::vector<std::vector<std::unique_ptr<Meeting>>> meetings; // per warp
    std::unique_ptr<char, decltype(&std::free)> shared{nullptr, &std::free};
    size_t shared_bytes, shared_capacity, shared_used;
    std::vector<Array> arrays;
    bool failed;
};

Launch launch;
std::vector<std::unique_ptr<Fiber>> fibers; // kept between launches: stacks are costly to make
std::string message;

uint64_t draw(uint64_t below) {
    launch.random ^= launch.random << 13;
    launch.random ^= launch.random >> 7;
    launch.random ^= launch.random << 17;
    return launch.random % below;
}

std::string name_of(const Thread& thread) {
    return "thread (" + std::to_string(thread.index.x) + ", " + std::to_string(thread.index.y) + ", " +
           std::to_string(thread.index.z) + ")";
}

std::string place(const char* what, const Where& where) {
    return std::string(what) + " at " + where.file_name() + ":" + std::to_string(where.line());
}

void run_thread(void* index) {
    const auto me = static_cast<unsigned>(reinterpret_cast<uintptr_t>(index));
    launch.thunk(launch.arguments);
    Thread& thread = launch.threads[me];
    for (const auto& group : thread.groups)
        if (!group.empty()) fail("%s ends with asynchronous copies that it never waited for", name_of(thread).c_str());
    thread.done = true;
    ++launch.n_done;
}

void wait_at(const char* what, const Where& where) {
    Thread& thread = launch.threads[launch.current];
    thread.waits_at = what;
    thread.where = where;
    Fiber::suspend();
}

void wake(unsigned index) {
    launch.threads[index].waits_at = nullptr;
    launch.ready.push_back(index);
}

void land(std::vector<Copy>& group) {
    for (const Copy& copy : group) {
        std::memcpy(copy.to, copy.from, copy.valid);
        std::memset(static_cast<char*>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
    }
    group.clear();
}

// Nobody can run and somebody is not done: say who waits where.
void report_deadlock() {
    std::map<std::string, std::pair<unsigned, std::string>> waiting; // place -> how many, first of them
    for (const Thread& thread : launch.threads)
        if (!thread.done) {
            auto& entry = waiting[place(thread.waits_at, thread.where)];
            if (entry.first++ == 0) entry.second = name_of(thread);
        }
    message = "block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
              std::to_string(blockIdx.z) + ") stands still: " + std::to_string(launch.n_done) + " of " +
              std::to_string(launch.threads.size()) + " threads have ended";
    for (const auto& [where, who] : waiting)
        message += "; " + std::to_string(who.first) + " wait in " + where + " (first: " + who.second + ")";
    launch.failed = true;
}

void start_block() {
    const auto n = static_cast<unsigned>(launch.threads.size());
    for (unsigned i = 0; i < n; ++i) {
        launch.threads[i] = Thread{
            {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y}, false, nullptr, {}, {{}}};
        launch.ready.push_back(i);
    }
    launch.n_done = launch.at_barrier = launch.n_true = 0;
    launch.meetings.clear();
    launch.meetings.resize((n + 31) / 32);
    launch.arrays.clear();
    launch.shared_used = 0;
    ASAN_POISON_MEMORY_REGION(launch.shared.get(), launch.shared_capacity);
}

void run_block() {
    start_block();
    while (!launch.ready.empty()) {
        const auto pick = static_cast<size_t>(draw(launch.ready.size()));
        launch.current = launch.ready[pick];
        launch.ready[pick] = launch.ready.back();
        launch.ready.pop_back();
        threadIdx = launch.threads[launch.current].index;
        fibers[launch.current]->resume();
        if (launch.failed) return;
    }
    if (launch.n_done != launch.threads.size()) report_deadlock();
}

} // namespace

Registration::Registration(const char* name, Thunk thunk) { kernels()[name] = thunk; }

void fail(const char* format, ...) {
    char text[2000];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    message = text;
    launch.failed = true;
    for (;;) Fiber::suspend(); // never resumed: the launch is over
}

bool toss() { return draw(2) != 0; }

unsigned lane() { return launch.current % 32; }

void maybe_yield() {
    if (draw(4)) return;
    launch.ready.push_back(launch.current);
    Fiber::suspend();
}

int barrier(int value, const char* name, Where where) {
    if (launch.n_done)
        fail("%s is reached by %s after %u threads of the block have ended", place(name, where).c_str(),
             name_of(launch.threads[launch.current]).c_str(), launch.n_done);
    if (launch.at_barrier && (launch.barrier_where.line() != where.line() ||
                              std::strcmp(launch.barrier_where.file_name(), where.file_name())))
        fail("threads of a block meet at different barriers: %s and %s",
             place(launch.barrier_name, launch.barrier_where).c_str(), place(name, where).c_str());
    launch.barrier_name = name;
    launch.barrier_where = where;
    launch.n_true += value != 0;
    const unsigned me = launch.current;
    if (++launch.at_barrier < launch.threads.size()) {
        wait_at(name, where);
        return launch.barrier_result;
    }
    const int result = launch.barrier_result = static_cast<int>(launch.n_true);
    launch.at_barrier = launch.n_true = 0;
    for (unsigned i = 0; i < launch.threads.size(); ++i)
        if (i != me) wake(i);
    launch.ready.push_back(me); // the last to come is not the first to go on
    Fiber::suspend();
    return result;
}

Meeting& meet(const char* name, unsigned mask, const void* operand, size_t bytes, Where where) {
    const unsigned me = launch.current, warp = me / 32;
    const auto in_warp = std::min<size_t>(32, launch.threads.size() - 32 * warp);
    if (!(mask >> (me % 32) & 1))
        fail("%s: lane %u is not in its own mask %08x", place(name, where).c_str(), me % 32, mask);
    if (in_warp < 32 && mask >> in_warp)
        fail("%s: the mask %08x names lanes that the block does not have", place(name, where).c_str(), mask);
    Meeting* meeting = nullptr;
    for (const auto& other : launch.meetings[warp]) {
        if (other->arrived == other->mask || !(other->mask & mask)) continue;
        if (other->mask != mask || std::strcmp(other->name, name) || other->where.line() != where.line())
            fail("lanes of one warp meet at different operations: %s with mask %08x and %s with mask %08x",
                 place(other->name, other->where).c_str(), other->mask, place(name, where).c_str(), mask);
        meeting = other.get();
    }
    if (!meeting) {
        launch.meetings[warp].push_back(std::make_unique<Meeting>());
        meeting = launch.meetings[warp].back().get();
        meeting->name = name;
        meeting->where = where;
        meeting->mask = mask;
        meeting->arrived = meeting->left = 0;
    }
    std::memcpy(meeting->slots[me % 32], operand, bytes);
    meeting->arrived |= 1u << me % 32;
    if (meeting->arrived != mask) {
        wait_at(name, where);
    } else {
        for (unsigned i = 0; i < 32; ++i)
            if (mask >> i & 1 && 32 * warp + i != me) wake(32 * warp + i);
    }
    return *meeting;
}

void leave(Meeting& meeting) {
    meeting.left |= 1u << launch.current % 32;
    if (meeting.left != meeting.mask) return;
    auto& open = launch.meetings[launch.current / 32];
    std::erase_if(open, [&](const auto& other) { return other.get() == &meeting; });
}

void* take_shared(size_t offset, size_t bytes) {
    for (const Array& array : launch.arrays)
        if (array.offset == offset) {
            if (array.bytes != bytes) break;
            return launch.shared.get() + array.at;
        }
    const Array* last = launch.arrays.empty() ? nullptr : &launch.arrays.back();
    if (offset != (last ? last->offset + (last->bytes + 15) / 16 * 16 : 0))
        fail("threads of a block deal out shared memory differently: %zu bytes at %zu", bytes, offset);
    if (offset + bytes > launch.shared_bytes || launch.arrays.size() == MAX_ARRAYS)
        fail("shared memory: array %zu needs %zu bytes from byte %zu, but the launch gave %zu in all",
             launch.arrays.size(), bytes, offset, launch.shared_bytes);
    const size_t at = launch.shared_used;
    launch.shared_used += (bytes + 15) / 16 * 16 + GAP;
    char* memory = launch.shared.get() + at;
    ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
    std::memset(memory, 0xff, bytes); // NaN as float32, float16 and bfloat16; -1 as an integer
    launch.arrays.push_back({offset, bytes, at});
    return memory;
}

void copy_later(void* to, const void* from, size_t bytes, size_t valid) {
    std::vector<Copy> one{{to, from, bytes, valid}};
    if (toss())
        land(one);
    else
        launch.threads[launch.current].groups.back().push_back(one[0]);
}

void close_copies() { launch.threads[launch.current].groups.emplace_back(); }

void finish_copies(unsigned groups_left_open) {
    auto& groups = launch.threads[launch.current].groups; // the last one is not committed yet
    while (groups.size() > groups_left_open + 1) {
        land(groups.front());
        groups.erase(groups.begin());
    }
}

} // namespace shim

extern "C" {

const char* shim_message() { return shim::message.c_str(); }

// Run a kernel to its end. Returns 0, or 1 when it misbehaved (see shim_message) or does not exist.
int shim_launch(const char* kernel, const unsigned* grid, const unsigned* block, size_t shared_bytes, void** arguments,
                uint64_t seed) {
    using namespace shim;
    const auto found = kernels().find(kernel);
    const unsigned n_threads = block[0] * block[1] * block[2];
    if (found == kernels().end() || n_threads == 0 || n_threads > MAX_THREADS) {
        message = std::string(kernel) + ": no such kernel, or " + std::to_string(n_threads) + " threads in a block";
        return 1;
    }
    launch.thunk = found->second;
    launch.arguments = arguments;
    launch.random = seed * 2654435761u + 88172645463325252u;
    launch.threads.resize(n_threads);
    launch.ready.clear();
    launch.failed = false;
    launch.shared_bytes = shared_bytes;
    launch.shared_capacity = shared_bytes + MAX_ARRAYS * (GAP + 16);
    launch.shared.reset(static_cast<char*>(std::aligned_alloc(128, (launch.shared_capacity + 127) / 128 * 128)));
    while (fibers.size() < n_threads)
        fibers.push_back(std::make_unique<Fiber>(run_thread, reinterpret_cast<void*>(fibers.size())));
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    const uint64_t n_blocks = uint64_t{grid[0]} * grid[1] * grid[2];
    uint64_t stride = draw(n_blocks ? n_blocks : 1) | 1; // a walk over all blocks, in an order of its own
    while (std::gcd(stride, n_blocks) != 1) stride += 2;
    for (uint64_t i = 0, at = draw(n_blocks ? n_blocks : 1); i < n_blocks; ++i, at = (at + stride) % n_blocks) {
        blockIdx = {static_cast<unsigned>(at % grid[0]), static_cast<unsigned>(at / grid[0] % grid[1]),
                    static_cast<unsigned>(at / grid[0] / grid[1])};
        run_block();
        if (launch.failed) {
            fibers.clear(); // some stand in the middle of the kernel
            break;
        }
    }
    ASAN_UNPOISON_MEMORY_REGION(launch.shared.get(), launch.shared_capacity);
    launch.shared.reset();
    return launch.failed;
}
}
