// The products of a head whose logits are all written out: X W^T by dot products, and G^T X and G W by outer products.
//
// For few labels both operands of the first lie along the depth, so that neither has to be packed: a block of rows and
// classes shares its loads, and every sum is a vector whose lanes are added up at the end.

#pragma once

#include "../cpu/tile_products.h"

namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int DOT_ROWS = 6, DOT_CLASSES = 4;  // 24 sums, 4 operands and 1 of 32 registers
#else
constexpr int DOT_ROWS = 4, DOT_CLASSES = 3;  // 12 sums, 3 operands and 1 of 16 registers
#endif
constexpr int64_t DOT_CHUNK = 96;  // classes whose weight stays in a core's cache while the rows pass by
static_assert(DOT_CHUNK % DOT_CLASSES == 0);

inline float add_lanes(const Lanes& lanes) {
    float sums[LANES];
    std::memcpy(sums, &lanes, sizeof lanes);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
    return sums[0];
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
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n)
            out[m * out_stride + n] = add_lanes(sums[m][n]) + (bias == nullptr ? 0.0f : bias[n]);
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

// out (rows, classes) = x (rows, depth) w (classes, depth)^T + bias.
void dot_product_matrix(int64_t rows, int64_t classes, int64_t depth, const float* x, const float* w, const float* bias,
                        float* out) {
    for (int64_t first = 0; first < classes; first += DOT_CHUNK) {
        const int64_t here = std::min(DOT_CHUNK, classes - first);
        const float* chunk_bias = bias == nullptr ? nullptr : bias + first;
        int64_t b = 0;
        for (; b + DOT_ROWS <= rows; b += DOT_ROWS)
            dot_rows_with_chunk<DOT_ROWS>(here, depth, x + b * depth, w + first * depth, chunk_bias,
                                          out + b * classes + first, classes);
        for (; b < rows; ++b)
            dot_rows_with_chunk<1>(here, depth, x + b * depth, w + first * depth, chunk_bias, out + b * classes + first,
                                   classes);
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

// Copy `columns` of every row, each times its own factor, into a panel, and fill it up with zeros.
inline void pack_scaled(int64_t rows, int64_t row_stride, int64_t columns, const float* from, const float* factors,
                        float* panel) {
    for (int64_t b = 0; b < rows; ++b, from += row_stride, panel += PANEL)
        if (columns == PANEL) {
            for (int n = 0; n < PANEL; n += LANES)
                *reinterpret_cast<Unaligned*>(panel + n) = *reinterpret_cast<const Unaligned*>(from + n) * factors[b];
        } else {
            for (int64_t c = 0; c < PANEL; ++c) panel[c] = c < columns ? from[c] * factors[b] : 0.0f;
        }
}

// out[m][.] (+)= sum over the depth of left(m, d) * panel[d]: M rows of a panel.
template <int M>
void outer_rows(int64_t depth, const Strided& left, int64_t m, const float* panel, float* out, int64_t out_stride,
                int64_t columns, bool adds) {
    Lanes sums[M][PANEL_VECTORS] = {};
    multiply<M, PANEL_VECTORS>(depth, left.data + m * left.row_stride, left.row_stride, left.column_stride, panel, sums);
    for (int i = 0; i < M && adds; ++i) add_row(out + i * out_stride, sums[i], columns);
    if (!adds) store<false>(sums, out, out_stride, columns);
}

// `columns` columns of out (rows, stride) (+)= left (rows, depth) right (depth, stride), the right ones packed in a panel.
void outer_product_panel(int64_t rows, int64_t depth, const Strided& left, const float* panel, float* out,
                         int64_t out_stride, int64_t columns, bool adds) {
    int64_t m = 0;
    for (; m + BLOCK <= rows; m += BLOCK)
        outer_rows<BLOCK>(depth, left, m, panel, out + m * out_stride, out_stride, columns, adds);
    float* rest = out + m * out_stride;
    switch (rows - m) {
        case 5: outer_rows<5>(depth, left, m, panel, rest, out_stride, columns, adds); break;
        case 4: outer_rows<4>(depth, left, m, panel, rest, out_stride, columns, adds); break;
        case 3: outer_rows<3>(depth, left, m, panel, rest, out_stride, columns, adds); break;
        case 2: outer_rows<2>(depth, left, m, panel, rest, out_stride, columns, adds); break;
        case 1: outer_rows<1>(depth, left, m, panel, rest, out_stride, columns, adds); break;
        default: break;
    }
}

}  // namespace
