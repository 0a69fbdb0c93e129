// A chunk of a tile's classes: its logits become exponentials in place, while sums and maxima are taken of every row.
//
// The rows of the batch lie side by side, so that all of them share each vector instruction.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();

// `size` classes from `first` on, counted as labels are, and `num_rows` rows; `bias` may be null.
struct Chunk {
    float* logits;
    const float* bias;
    int64_t first, size, num_rows;

    float offset(int64_t k) const { return bias == nullptr ? 0.0f : bias[k]; }
    bool holds(int64_t label) const { return label >= first && label < first + size; }
};

// e^x for x <= 87, to 1.5 units in the last place; 0 below -87, where float would turn subnormal; NaN stays NaN.
// x = n ln 2 + r with |r| <= ln(2)/2, ln 2 in two parts; the polynomial is Cephes' expf.
inline float exp_near(float x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
    const float shifted = x * 1.44269504088896341f + magic;
    const float n = shifted - magic;
    float r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + (127u << 23);
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return x < -87.0f ? 0.0f : p * power;
}

inline float larger(float a, float b) { return a > b ? a : b; }
inline float smaller(float a, float b) { return a < b ? a : b; }

// Read the logits of the labels (num_labels, rows) that lie in the chunk, then set them to -infinity.
void take_labels(const Chunk& chunk, const int64_t* labels, int64_t num_labels, float* label_logit) {
    const int64_t slots = num_labels * chunk.num_rows;
    for (int64_t i = 0; i < slots; ++i) {
        if (!chunk.holds(labels[i])) continue;
        const int64_t k = labels[i] - chunk.first;
        label_logit[i] = chunk.logits[k * chunk.num_rows + i % chunk.num_rows] + chunk.offset(k);
    }
    for (int64_t i = 0; i < slots; ++i)  // only now: both labels of a row may be one class
        if (chunk.holds(labels[i])) chunk.logits[(labels[i] - chunk.first) * chunk.num_rows + i % chunk.num_rows] = -INF;
}

// Raise `top` to the maximum of every row.
void raise_to_maximum(const Chunk& chunk, float* top) {
    for (int64_t k = 0; k < chunk.size; ++k) {
        const float* z = chunk.logits + k * chunk.num_rows;
        const float offset = chunk.offset(k);
#pragma omp simd
        for (int64_t b = 0; b < chunk.num_rows; ++b) top[b] = larger(z[b] + offset, top[b]);
    }
}

// Of the rows whose first label lies in the chunk: the maxima on either side of it.
void split_maximum(const Chunk& chunk, const int64_t* labels, float* before, float* after) {
    for (int64_t b = 0; b < chunk.num_rows; ++b) {
        if (!chunk.holds(labels[b])) continue;
        before[b] = after[b] = -INF;
        for (int64_t k = 0; k < chunk.size; ++k) {
            float* side = chunk.first + k < labels[b] ? before : after;
            side[b] = larger(chunk.logits[k * chunk.num_rows + b] + chunk.offset(k), side[b]);
        }
    }
}

// e^(z - shift) of UNROLL classes in place, with their sum and the maximum of their logits.
template <int UNROLL>
inline void exponentiate(const Chunk& chunk, int64_t k, const float* shift, float* sum, float* top) {
    const int64_t rows = chunk.num_rows;
    float* z = chunk.logits + k * rows;
    float offset[UNROLL];
    for (int u = 0; u < UNROLL; ++u) offset[u] = chunk.offset(k + u);
#pragma omp simd
    for (int64_t b = 0; b < rows; ++b) {
        float total = 0.0f, most = top[b];
        for (int u = 0; u < UNROLL; ++u) {
            const float logit = z[u * rows + b] + offset[u];
            const float e = exp_near(logit - shift[b]);
            most = larger(logit, most);
            z[u * rows + b] = e;
            total += e;
        }
        sum[b] += total;
        top[b] = most;
    }
}

// The whole chunk; adds to `sum`, and raises `top`.
void exponentiate(const Chunk& chunk, const float* shift, float* sum, float* top) {
    int64_t k = 0;
    for (; k + 4 <= chunk.size; k += 4) exponentiate<4>(chunk, k, shift, sum, top);
    for (; k < chunk.size; ++k) exponentiate<1>(chunk, k, shift, sum, top);
}

// The same, with e^x * x written to `moments` and summed as well.
void exponentiate_with_moments(const Chunk& chunk, const float* shift, float* sum, float* top, float* moments,
                               float* moment_sum) {
    for (int64_t k = 0; k < chunk.size; ++k) {
        float *z = chunk.logits + k * chunk.num_rows, *m = moments + k * chunk.num_rows;
        const float offset = chunk.offset(k);
#pragma omp simd
        for (int64_t b = 0; b < chunk.num_rows; ++b) {
            const float logit = z[b] + offset, x = logit - shift[b];
            const float e = exp_near(x);
            const float ex = x < -87.0f ? 0.0f : e * x;  // also where x is -infinity, at the labels
            top[b] = larger(logit, top[b]);
            z[b] = e;
            m[b] = ex;
            sum[b] += e;
            moment_sum[b] += ex;
        }
    }
}

}  // namespace
