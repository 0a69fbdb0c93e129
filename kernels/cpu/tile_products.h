// The three matrix products of a chunk of classes, for the shapes that this loss has: few rows, many classes.
//
// A general library packs both operands of a product anew, and writes its result to memory before anything reads it. Here
// the features are packed once for all tiles, in panels of PANEL columns; a chunk's weight is read from memory once and
// multiplied twice while it lies in the cache; and between the two products its exponentials do not leave it either.
// Every product is a sum over `depth` of outer products of BLOCK scalars and PANEL lanes, held in registers.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, PANEL_VECTORS = 4;  // 6 x 4 sums and 4 operands of 32 registers
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, PANEL_VECTORS = 2;  // 6 x 2 sums of 16 registers
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, PANEL_VECTORS = 4;  // 6 x 4 sums of 32 registers
#else
constexpr int VECTOR_BYTES = 16, PANEL_VECTORS = 2;
#endif

#if defined(__clang__) && defined(__AVX512F__)
#define WHOLE_VECTORS __attribute__((min_vector_width(8 * VECTOR_BYTES)))  // Clang would halve them and run out of registers
#else
#define WHOLE_VECTORS
#endif

typedef float Lanes __attribute__((vector_size(VECTOR_BYTES)));
typedef float Unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

constexpr int LANES = VECTOR_BYTES / 4;
constexpr int PANEL = PANEL_VECTORS * LANES;
constexpr int BLOCK = 6;
constexpr int64_t CACHE_LINE = 16;  // floats
constexpr int64_t STREAMED_BYTES = 1 << 26;  // results this large do not stay in a cache, so that they may pass it by

// sums[m][.] = sum over d of left[m * row_stride + d * depth_stride] * panel[d * panel_stride + .]
template <int M, int N>
inline __attribute__((always_inline)) WHOLE_VECTORS void multiply(int64_t depth, const float* left, int64_t row_stride,
                                                                  int64_t depth_stride, const float* panel,
                                                                  Lanes (&sums)[M][N], int64_t panel_stride = PANEL) {
    for (int64_t d = 0; d < depth; ++d) {
        Lanes right[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) right[n] = *reinterpret_cast<const Unaligned*>(panel + d * panel_stride + n * LANES);
#pragma GCC unroll 6
        for (int m = 0; m < M; ++m) {
            const float scalar = left[m * row_stride + d * depth_stride];
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) sums[m][n] += scalar * right[n];
        }
    }
}

// Whether a matrix can be, and is worth being, written past the caches, which spares reading what is overwritten.
inline bool can_stream([[maybe_unused]] const float* out, [[maybe_unused]] int64_t rows,
                       [[maybe_unused]] int64_t columns) {
#if defined(__AVX512F__)
    const bool is_large = rows * columns * static_cast<int64_t>(sizeof(float)) >= STREAMED_BYTES;
    return is_large && columns % LANES == 0 && reinterpret_cast<uintptr_t>(out) % VECTOR_BYTES == 0;
#else
    return false;
#endif
}

// Make what this thread streamed visible to others.
inline void finish_streams() {
#if defined(__AVX512F__)
    _mm_sfence();
#endif
}

template <bool STREAMS>
inline void store_vector(const Lanes& lanes, float* out) {
#if defined(__AVX512F__)
    if (STREAMS) return _mm512_stream_ps(out, (__m512)lanes);
#endif
    *reinterpret_cast<Unaligned*>(out) = lanes;
}

// Write the first `columns` of M rows.
template <bool STREAMS, int M, int N>
inline void store(const Lanes (&sums)[M][N], float* out, int64_t row_stride, int64_t columns) {
    for (int m = 0; m < M; ++m)
        if (columns == N * LANES)
            for (int n = 0; n < N; ++n) store_vector<STREAMS>(sums[m][n], out + m * row_stride + n * LANES);
        else
            std::memcpy(out + m * row_stride, sums[m], columns * sizeof(float));
}

// out[m][.] = left[m] . panel, both contiguous along the depth; the M rows that follow are fetched meanwhile.
template <bool STREAMS, int M, int N>
void dot_rows(int64_t depth, const float* left, const float* panel, float* out, int64_t out_stride, int64_t columns) {
    Lanes sums[M][N] = {};
    int64_t d = 0;
    for (; d + CACHE_LINE <= depth; d += CACHE_LINE) {
        for (int m = 0; m < M; ++m) __builtin_prefetch(left + (M + m) * depth + d);
        multiply<M, N>(CACHE_LINE, left + d, depth, 1, panel + d * PANEL, sums);
    }
    multiply<M, N>(depth - d, left + d, depth, 1, panel + d * PANEL, sums);
    store<STREAMS>(sums, out, out_stride, columns);
}

// The same for the classes of a whole chunk and one panel of N vectors.
template <bool STREAMS, int N>
void dot_chunk(int64_t classes, int64_t depth, const float* left, const float* panel, float* out, int64_t out_stride,
               int64_t columns) {
    int64_t k = 0;
    for (; k + BLOCK <= classes; k += BLOCK)
        dot_rows<STREAMS, BLOCK, N>(depth, left + k * depth, panel, out + k * out_stride, out_stride, columns);
    for (; k < classes; ++k) dot_rows<STREAMS, 1, N>(depth, left + k * depth, panel, out + k * out_stride, out_stride, columns);
}

// out (classes, columns) = left (classes, depth) * panels; `columns` of the last panel may be missing.
template <bool STREAMS>
void matrix_product(int64_t classes, int64_t depth, int64_t columns, const float* left, const float* panels,
                    float* out) {
    for (int64_t first = 0; first < columns; first += PANEL) {
        const float* panel = panels + first * depth;
        const int64_t here = std::min<int64_t>(PANEL, columns - first);
        switch ((here + LANES - 1) / LANES) {
            case 1: dot_chunk<STREAMS, 1>(classes, depth, left, panel, out + first, columns, here); break;
            case 2: dot_chunk<STREAMS, 2>(classes, depth, left, panel, out + first, columns, here); break;
            case 3: dot_chunk<STREAMS, 3>(classes, depth, left, panel, out + first, columns, here); break;
            default: dot_chunk<STREAMS, PANEL_VECTORS>(classes, depth, left, panel, out + first, columns, here);
        }
    }
}

// sums (rows of M, PANEL) += sum over the classes of exps[k][m] * panel[k]
template <int M>
void add_outer(int64_t classes, const float* exps, int64_t rows, const float* panel, float* sums) {
    Lanes added[M][PANEL_VECTORS] = {};
    multiply<M, PANEL_VECTORS>(classes, exps, 1, rows, panel, added);
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < PANEL_VECTORS; ++n)
            *reinterpret_cast<Unaligned*>(sums + m * PANEL + n * LANES) += added[m][n];
}

// Copy `columns` of every row into a panel, and fill it up with zeros.
inline void pack(int64_t rows, int64_t row_stride, int64_t columns, const float* from, float* panel) {
    for (int64_t k = 0; k < rows; ++k, from += row_stride, panel += PANEL) {
        if (columns == PANEL) {
            for (int n = 0; n < PANEL; n += LANES)
                *reinterpret_cast<Unaligned*>(panel + n) = *reinterpret_cast<const Unaligned*>(from + n);
            continue;
        }
        std::memcpy(panel, from, columns * sizeof(float));
        std::fill(panel + columns, panel + PANEL, 0.0f);
    }
}

// sums (panels, rows, PANEL) += exps (classes, rows)^T * weight (classes, features)
void add_transposed_product(int64_t classes, int64_t rows, int64_t features, const float* exps, const float* weight,
                            float* packed, float* sums) {
    for (int64_t first = 0; first < features; first += PANEL, sums += rows * PANEL) {
        const int64_t here = std::min<int64_t>(PANEL, features - first);
        pack(classes, features, here, weight + first, packed);
        int64_t b = 0;
        for (; b + BLOCK <= rows; b += BLOCK) add_outer<BLOCK>(classes, exps + b, rows, packed, sums + b * PANEL);
        switch (rows - b) {
            case 5: add_outer<5>(classes, exps + b, rows, packed, sums + b * PANEL); break;
            case 4: add_outer<4>(classes, exps + b, rows, packed, sums + b * PANEL); break;
            case 3: add_outer<3>(classes, exps + b, rows, packed, sums + b * PANEL); break;
            case 2: add_outer<2>(classes, exps + b, rows, packed, sums + b * PANEL); break;
            case 1: add_outer<1>(classes, exps + b, rows, packed, sums + b * PANEL); break;
            default: break;
        }
    }
}

// sum (features) += the sum over the classes of weight (classes, features), a chunk at a time for the sake of its digits
void add_rows(int64_t classes, int64_t features, const float* weight, float* chunk_sum, float* sum) {
    std::fill(chunk_sum, chunk_sum + features, 0.0f);
    for (int64_t k = 0; k < classes; ++k)
#pragma omp simd
        for (int64_t d = 0; d < features; ++d) chunk_sum[d] += weight[k * features + d];
    for (int64_t d = 0; d < features; ++d) sum[d] += chunk_sum[d];
}

}  // namespace
