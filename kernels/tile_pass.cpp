// One tile of logits, classes by rows: exponentials in place, their sums and every row's maximum, in a single sweep.
//
// The tile is (width, rows) with the rows of the batch side by side, so that all of them share each vector instruction.
// It is cut into chunks of CHUNK classes, whatever the number of threads, and the chunks' results are merged in order:
// the same input gives the same bits on any number of threads. rlpheads.kernels.native builds and loads this file;
// rlpheads.kernels.tile_pass holds the same in plain PyTorch, and says what the arguments mean.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr int64_t CHUNK = 256;
constexpr int64_t SMALL = 1 << 15;  // elements below which a second thread costs more than it does
constexpr float NO_CLASS_SHIFT = -1e30f;  // as in rlpheads.kernels.partials
constexpr float INF = std::numeric_limits<float>::infinity();

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

// Read the logits of the labels that lie in the classes [begin, end), then set them to -infinity.
void take_labels(float* tile, const float* bias, const int64_t* labels, int64_t num_labels, int64_t rows,
                 int64_t start, int64_t begin, int64_t end, float* label_logit) {
    for (int64_t i = 0; i < num_labels * rows; ++i) {
        const int64_t k = labels[i] - start;
        if (k >= begin && k < end) label_logit[i] = tile[k * rows + i % rows] + (bias == nullptr ? 0.0f : bias[k]);
    }
    for (int64_t i = 0; i < num_labels * rows; ++i) {
        const int64_t k = labels[i] - start;
        if (k >= begin && k < end) tile[k * rows + i % rows] = -INF;
    }
}

// Maximum of every row over the classes [begin, end).
void chunk_maximum(const float* tile, const float* bias, int64_t rows, int64_t begin, int64_t end, float* top) {
    for (int64_t b = 0; b < rows; ++b) top[b] = -INF;
    for (int64_t k = begin; k < end; ++k) {
        const float* z = tile + k * rows;
        const float offset = bias == nullptr ? 0.0f : bias[k];
#pragma omp simd
        for (int64_t b = 0; b < rows; ++b) top[b] = larger(z[b] + offset, top[b]);
    }
}

// Of the rows whose first label lies in the classes [begin, end): the maxima on either side of it.
void split_maximum(const float* tile, const float* bias, const int64_t* labels, int64_t rows, int64_t start,
                   int64_t begin, int64_t end, float* own_before, float* own_after) {
    for (int64_t b = 0; b < rows; ++b) {
        const int64_t label = labels[b] - start;
        if (label < begin || label >= end) continue;
        own_before[b] = own_after[b] = -INF;
        for (int64_t k = begin; k < end; ++k) {
            float* side = k < label ? own_before : own_after;
            side[b] = larger(tile[k * rows + b] + (bias == nullptr ? 0.0f : bias[k]), side[b]);
        }
    }
}

// e^x of UNROLL classes in place, with their sum and the maximum of their logits.
template <int UNROLL>
inline void exponentials(float* z, const float* offset, const float* shift, int64_t rows, float* sum, float* top) {
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

// Exponentials of the classes [begin, end) in place, their sums, and the maxima of their logits.
void chunk_exponentials(float* tile, const float* bias, const float* shift, int64_t rows, int64_t begin, int64_t end,
                        float* sum, float* top) {
    for (int64_t b = 0; b < rows; ++b) {
        sum[b] = 0.0f;
        top[b] = -INF;
    }
    const float none[4] = {};
    int64_t k = begin;
    for (; k + 4 <= end; k += 4)
        exponentials<4>(tile + k * rows, bias == nullptr ? none : bias + k, shift, rows, sum, top);
    for (; k < end; ++k) exponentials<1>(tile + k * rows, bias == nullptr ? none : bias + k, shift, rows, sum, top);
}

// The same, with e^x * x written and summed as well.
void chunk_moments(float* tile, float* moments, const float* bias, const float* shift, int64_t rows, int64_t begin,
                   int64_t end, float* sum, float* top, float* moment_sum) {
    for (int64_t b = 0; b < rows; ++b) {
        sum[b] = moment_sum[b] = 0.0f;
        top[b] = -INF;
    }
    for (int64_t k = begin; k < end; ++k) {
        float *z = tile + k * rows, *m = moments + k * rows;
        const float offset = bias == nullptr ? 0.0f : bias[k];
#pragma omp simd
        for (int64_t b = 0; b < rows; ++b) {
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

extern "C" {

// See rlpheads.kernels.tile_pass.reduce_tile. `moments` and `bias` may be null; every array is contiguous. Returns 0; or
// 1 if a row's maximum lies more than `reach` above its shift: then its shift was raised, and the tile, which was
// overwritten, is to be computed and passed once more.
int rlpheads_reduce_tile(float* tile, float* moments, const float* bias, const int64_t* labels, int64_t num_labels,
                         int64_t rows, int64_t width, int64_t start, float* shift, float* sum, float* moment,
                         float* label_logit, float* before, float* after, float* factor, float reach, int threads) {
    const int64_t chunks = (width + CHUNK - 1) / CHUNK;
    std::vector<float> tops(chunks * rows), sums(chunks * rows), moment_sums(moments == nullptr ? 0 : chunks * rows);
    std::vector<float> own_before(rows, -INF), own_after(rows, -INF), first(rows);
    take_labels(tile, bias, labels, num_labels, rows, start, 0, width, label_logit);
    bool is_new = false;
    for (int64_t b = 0; b < rows; ++b) is_new |= shift[b] == NO_CLASS_SHIFT;
    if (is_new) {
        chunk_maximum(tile, bias, rows, 0, CHUNK < width ? CHUNK : width, first.data());
        for (int64_t b = 0; b < rows; ++b)
            if (shift[b] == NO_CLASS_SHIFT && first[b] > -INF) shift[b] = first[b];
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > SMALL)
    for (int64_t c = 0; c < chunks; ++c) {
        const int64_t begin = c * CHUNK, end = begin + CHUNK < width ? begin + CHUNK : width;
        split_maximum(tile, bias, labels, rows, start, begin, end, own_before.data(), own_after.data());
        if (moments == nullptr)
            chunk_exponentials(tile, bias, shift, rows, begin, end, &sums[c * rows], &tops[c * rows]);
        else
            chunk_moments(tile, moments, bias, shift, rows, begin, end, &sums[c * rows], &tops[c * rows],
                          &moment_sums[c * rows]);
    }
    int raised = 0;
    for (int64_t b = 0; b < rows; ++b) {
        const int64_t label = labels[b] - start;
        before[b] = larger(own_before[b], before[b]);
        after[b] = larger(own_after[b], after[b]);
        float top = -INF;
        for (int64_t c = 0; c < chunks; ++c) {
            const float t = tops[c * rows + b];
            top = larger(t, top);
            if (label >= (c + 1) * CHUNK || label >= width) before[b] = larger(t, before[b]);
            if (label < c * CHUNK) after[b] = larger(t, after[b]);
        }
        if (top <= shift[b] + reach) continue;
        raised = 1;
        const float drop = shift[b] - top, scale = std::exp(drop);
        moment[b] = scale * (moment[b] + drop * sum[b]);
        sum[b] *= scale;
        factor[b] *= scale;
        shift[b] = top;
    }
    if (raised) return 1;
    for (int64_t b = 0; b < rows; ++b) {
        float total = 0.0f, moment_total = 0.0f;
        for (int64_t c = 0; c < chunks; ++c) total += sums[c * rows + b];
        if (moments != nullptr)
            for (int64_t c = 0; c < chunks; ++c) moment_total += moment_sums[c * rows + b];
        sum[b] += total;
        moment[b] += moment_total;
    }
    return 0;
}

// The same tile once more, with the shift that it had: e^(z + bias - shift), 0 at the labels.
void rlpheads_exponentiate_tile(float* tile, const float* bias, const int64_t* labels, int64_t num_labels,
                                int64_t rows, int64_t width, int64_t start, const float* shift, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (rows * width > SMALL)
    for (int64_t k = 0; k < width; ++k) {
        float* z = tile + k * rows;
        const float offset = bias == nullptr ? 0.0f : bias[k];
#pragma omp simd
        for (int64_t b = 0; b < rows; ++b) z[b] = exp_near(z[b] + offset - shift[b]);
    }
    for (int64_t i = 0; i < num_labels * rows; ++i) {
        const int64_t k = labels[i] - start;
        if (k >= 0 && k < width) tile[k * rows + i % rows] = 0.0f;
    }
}

}  // extern "C"
