// Memory of a thread's own, and how many threads a piece of work is worth.

#pragma once

#include <cstdint>
#include <vector>

namespace {

constexpr int64_t SMALL = 1 << 15;  // elements below which a second thread costs more than it does

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int threads_for(int64_t elements, int threads) { return elements > SMALL ? threads : 1; }

struct alignas(64) CacheLine {
    float values[16];
};

// Zeros that begin at a cache line, so that no vector of them straddles two.
class Floats {
public:
    explicit Floats(int64_t size) : lines_(ceil_divide(size, 16)) {}
    float* data() { return reinterpret_cast<float*>(lines_.data()); }

private:
    std::vector<CacheLine> lines_;
};

}  // namespace
