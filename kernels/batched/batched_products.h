// The products of a head whose logits are all written out: X W^T by dot products, and G^T X and G W by outer products.
//
// For few labels both operands of the first lie along the depth, so that neither has to be packed: a block of rows and
// classes shares its loads, and every sum is a vector whose lanes are added up at the end.

#pragma once

#include "../cpu/tile_products.h"

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int DOT_ROWS = 6, DOT_CLASSES = 4;  // 24 sums, 4 operands and 1 of 32 registers
#else
constexpr int DOT_ROWS = 4, DOT_CLASSES = 3;  // 12 sums, 3 operands and 1 of 16 registers
#endif
constexpr int64_t DOT_CHUNK = 96;  // classes whose weight stays in a core's cache while the rows pass by
static_assert(DOT_CHUNK % DOT_CLASSES == 0);

// The sum of the lanes of each of COUNT vectors.
template <int COUNT>
inline void add_lanes(const Lanes* vectors, float* sums) {
    int i = 0;
#if defined(__AVX__)
    const auto quarter = [vectors](int i) {
#if defined(__AVX512F__)
        const __m512 whole = (__m512)vectors[i];
        const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(whole),
                                          _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(whole), 1)));
#else
        const __m256 half = (__m256)vectors[i];
#endif
        return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    };
    for (; i + 4 <= COUNT; i += 4)
        _mm_storeu_ps(sums + i, _mm_hadd_ps(_mm_hadd_ps(quarter(i), quarter(i + 1)), _mm_hadd_ps(quarter(i + 2), quarter(i + 3))));
#endif
    for (; i < COUNT; ++i) {
        float lanes[LANES];
        std::memcpy(lanes, &vectors[i], sizeof lanes);
        for (int width = LANES / 2; width > 0; width /= 2)
            for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
        sums[i] = lanes[0];
    }
}

// out[m * out_stride + n] = x[m] . w[n] + bias[n], over contiguous rows of `depth` numbers.
template <int M, int N>
WHOLE_VECTORS void dot_block(int64_t depth, const float* x, const float* w, const float* bias, float* out,
                             int64_t out_stride) {
    Lanes sums[M][N] = {};
    const auto add = [&](const auto& load) {
        Lanes right[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) right[n] = load(w + n * depth);
#pragma GCC unroll 6
        for (int m = 0; m < M; ++m) {
            const Lanes left = load(x + m * depth);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) sums[m][n] += left * right[n];
        }
    };
    int64_t d = 0;
    for (; d + LANES <= depth; d += LANES)
        add([d](const float* row) -> Lanes { return *reinterpret_cast<const Unaligned*>(row + d); });
    if (d < depth)
        add([d, depth](const float* row) -> Lanes {
            Lanes rest = {};
            std::memcpy(&rest, row + d, (depth - d) * sizeof(float));
            return rest;
        });
    float added[M * N];
    add_lanes<M * N>(sums[0], added);
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) out[m * out_stride + n] = added[m * N + n] + (bias == nullptr ? 0.0f : bias[n]);
}

template <int M>
void dot_rows_with_chunk(int64_t classes, int64_t depth, const float* x, const float* w, const float* bias, float* out,
                         int64_t out_stride) {
    const auto bias_at = [bias](int64_t k) { return bias == nullptr ? nullptr : bias + k; };
    int64_t k = 0;
    for (; k + DOT_CLASSES <= classes; k += DOT_CLASSES)
        dot_block<M, DOT_CLASSES>(depth, x, w + k * depth, bias_at(k), out + k, out_stride);
    if (k + 2 <= classes) {
        dot_block<M, 2>(depth, x, w + k * depth, bias_at(k), out + k, out_stride);
        k += 2;
    }
    if (k < classes) dot_block<M, 1>(depth, x, w + k * depth, bias_at(k), out + k, out_stride);
}

// out (rows, classes), of which rows begin `out_stride` apart, = x (rows, depth) w (classes, depth)^T + bias.
void dot_product_matrix(int64_t rows, int64_t classes, int64_t depth, const float* x, const float* w, const float* bias,
                        float* out, int64_t out_stride) {
    for (int64_t first = 0; first < classes; first += DOT_CHUNK) {
        const int64_t here = std::min(DOT_CHUNK, classes - first);
        const float* chunk_bias = bias == nullptr ? nullptr : bias + first;
        const auto pass = [&](auto dot_rows, int64_t b) {
            dot_rows(here, depth, x + b * depth, w + first * depth, chunk_bias, out + b * out_stride + first, out_stride);
        };
        int64_t b = 0;
        for (; b + DOT_ROWS <= rows; b += DOT_ROWS) pass(dot_rows_with_chunk<DOT_ROWS>, b);
        for (; b + 2 <= rows; b += 2) pass(dot_rows_with_chunk<2>, b);
        if (b < rows) pass(dot_rows_with_chunk<1>, b);
    }
}

// to (columns, to_stride) = the transpose of from (rows, from_stride), whose numbers become those of of_row(row, number).
template <class OfRow>
inline void transpose(int64_t rows, int64_t columns, const float* from, int64_t from_stride, float* to, int64_t to_stride,
                      const OfRow& of_row) {
    for (int64_t first = 0; first < rows; first += CACHE_LINE)
        for (int64_t left = 0; left < columns; left += CACHE_LINE) {
            float block[CACHE_LINE][CACHE_LINE];  // turned in the cache, so that both sides are taken by lines
            const auto turn = [&](int64_t high, int64_t wide) __attribute__((always_inline)) {
                for (int64_t r = 0; r < high; ++r)
                    for (int64_t c = 0; c < wide; ++c)
                        block[c][r] = of_row(first + r, from[(first + r) * from_stride + left + c]);
                for (int64_t c = 0; c < wide; ++c)
                    std::copy(block[c], block[c] + high, to + (left + c) * to_stride + first);
            };
            const int64_t high = std::min(CACHE_LINE, rows - first), wide = std::min(CACHE_LINE, columns - left);
            if (high == CACHE_LINE && wide == CACHE_LINE)
                turn(CACHE_LINE, CACHE_LINE);
            else
                turn(high, wide);
        }
}

// How a matrix is read: at(i, j) = data[i * row_stride + j * column_stride].
struct Strided {
    const float* data;
    int64_t row_stride, column_stride;
};

// Add the first `columns` numbers of a panel's row.
inline void add_row(float* to, const Lanes (&sums)[PANEL_VECTORS], int64_t columns) {
    if (columns == PANEL) {
        for (int n = 0; n < PANEL_VECTORS; ++n) *reinterpret_cast<Unaligned*>(to + n * LANES) += sums[n];
        return;
    }
    float row[PANEL];
    std::memcpy(row, sums, sizeof row);
    for (int64_t c = 0; c < columns; ++c) to[c] += row[c];
}

// Rows of which `columns` numbers count, PANEL of them readable, the rows `stride` apart.
struct Panel {
    const float* data;
    int64_t stride, columns;
};

// How a product is written: its first row, the distance of its rows, and whether to what is there.
struct Written {
    float* out;
    int64_t stride;
    bool adds;
};

// out[m][.] (+)= factors[m] * sum over the depth of left(m, d) * panel[d]: M rows of a panel.
template <int M>
void outer_rows(int64_t depth, const Strided& left, int64_t m, const Panel& panel, const float* factors,
                const Written& to) {
    Lanes sums[M][PANEL_VECTORS] = {};
    multiply<M, PANEL_VECTORS>(depth, left.data + m * left.row_stride, left.row_stride, left.column_stride, panel.data, sums,
                               panel.stride);
    for (int i = 0; i < M && factors != nullptr; ++i)
        for (Lanes& lanes : sums[i]) lanes *= factors[m + i];
    float* const out = to.out + m * to.stride;
    for (int i = 0; i < M && to.adds; ++i) add_row(out + i * to.stride, sums[i], panel.columns);
    if (!to.adds) store<false>(sums, out, to.stride, panel.columns);
}

// The panel's columns of what is written (rows, stride) (+)= factors (rows; null: 1) * left (rows, depth) panel (depth, columns).
void outer_product_panel(int64_t rows, int64_t depth, const Strided& left, const Panel& panel, const float* factors,
                         const Written& to) {
    int64_t m = 0;
    for (; m + BLOCK <= rows; m += BLOCK) outer_rows<BLOCK>(depth, left, m, panel, factors, to);
    switch (rows - m) {
        case 5: outer_rows<5>(depth, left, m, panel, factors, to); break;
        case 4: outer_rows<4>(depth, left, m, panel, factors, to); break;
        case 3: outer_rows<3>(depth, left, m, panel, factors, to); break;
        case 2: outer_rows<2>(depth, left, m, panel, factors, to); break;
        case 1: outer_rows<1>(depth, left, m, panel, factors, to); break;
        default: break;
    }
}

}  // namespace
