// The gradient of a tile's weight, which never lies in memory: a few classes at a time it is looked at, or taken as a step.
//
// It is made in a core's cache (tile_products.h), a panel of columns of a few rows at a time, and used up there by the optimizer's
// arithmetic on what was fetched meanwhile of the weight and of its states. A step of its own would write and read a gradient as large as the weight.
// rlpheads.kernels.native builds this file, rlpheads.kernels.cpu.tile_update calls it.

#include "tile_products.h"
#include "tile_scratch.h"

#include <cmath>
#include <new>
#include <vector>

extern "C" {

// Mirrored in rlpheads.kernels.cpu.tile_update. Arrays are contiguous, and null where nothing is wanted.
struct TileGradient {
    const float* exponentials;               // (width, num_rows)
    const float* scale;                      // (num_rows), multiplies them
    const int64_t *label_class, *label_row;  // (num_labels) of the labels in the tile, ascending by class
    const float* label_gradient;             // (num_labels), is added there
    const float* features;                   // (num_rows, num_features) in panels
    int64_t width, num_rows, num_labels, num_features;
};

struct Survey {
    float* bias_gradient;  // (width), written
    double* products;      // (threads, panels of rows, num_rows, PANEL), added to: of pairs of rows, every other one's left out
    double* squared;       // (threads), added to: the squared norm of the weight's gradient
};

// One step in the constants of torch's optimizers: Adam where there is a second state, else SGD with or without momentum.
struct Step {
    float *weight, *first, *second;  // (width, num_features)
    float* bias_gradient;            // (width), written
    double* squared;                 // (threads), added to: the squared norm of the weight's gradient
    float keep, l2, first_decay, first_share, second_decay, second_share, rate, inverse_root, eps;
    int64_t nesterov;
};

}  // extern "C"

#define INLINED inline __attribute__((always_inline))  // a call for every panel would cost a twentieth

namespace {

constexpr int64_t SURVEYED = 48;  // classes that are surveyed at once, whole blocks
constexpr int64_t AHEAD = 4;      // panels between a step and what is fetched for a later one, all of which the first cache holds
constexpr int64_t STRIDE = 4;     // rows between two fetches: a core awaits few lines at a time, and would stand still for more

void write_logit_gradients(const TileGradient& tile, int64_t first, int64_t size, float* out) {
    const int64_t rows = tile.num_rows;
    const float* exps = tile.exponentials + first * rows;
    for (int64_t k = 0; k < size; ++k)
#pragma omp simd
        for (int64_t b = 0; b < rows; ++b) out[k * rows + b] = exps[k * rows + b] * tile.scale[b];
    const int64_t *begin = tile.label_class, *end = begin + tile.num_labels;
    for (const int64_t* each = std::lower_bound(begin, end, first); each < end && *each < first + size; ++each)
        out[(*each - first) * rows + tile.label_row[each - begin]] += tile.label_gradient[each - begin];
}

void sum_over_rows(const float* logits, int64_t size, int64_t rows, float* out) {
    for (int64_t k = 0; k < size; ++k) {
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t b = 0; b < rows; ++b) sum += logits[k * rows + b];
        out[k] = sum;
    }
}

float square(const float* values, int64_t size) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; ++i) sum += values[i] * values[i];
    return sum;
}

// Calls work(thread, first class, classes) for blocks of a tile's classes. Every thread has a part of its own, cut here and not
// by OpenMP, which may grant fewer threads than were asked for.
template <class Work>
void for_each_block(const TileGradient& tile, int64_t size, int threads, Work& work) {
    const int64_t blocks = ceil_divide(tile.width, size);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int thread = 0; thread < threads; ++thread)
        for (int64_t n = thread * blocks / threads; n < (thread + 1) * blocks / threads; ++n)
            work(thread, n * size, std::min(size, tile.width - n * size));
}

// With G = dL/dz, the weight's gradient is G^T X, and its squared norm the sum of (G G^T) * (X X^T) over pairs of rows: for few
// rows far less work than the gradient itself.
class Surveyor {
public:
    Surveyor(const TileGradient& tile, const Survey& survey, int threads) : tile_(tile), survey_(survey) {
        const int64_t rows = tile.num_rows;
        for (int thread = 0; thread < threads; ++thread) {
            logits_.emplace_back(SURVEYED * rows);
            packed_.emplace_back(survey.products ? SURVEYED * PANEL : 0);
            sums_.emplace_back(survey.products ? rows * PANEL : 0);
            gradient_.emplace_back(survey.squared ? SURVEYED * tile.num_features : 0);
        }
    }

    void operator()(int thread, int64_t first, int64_t size) {
        float* logits = logits_[thread].data();
        write_logit_gradients(tile_, first, size, logits);
        if (survey_.bias_gradient) sum_over_rows(logits, size, tile_.num_rows, survey_.bias_gradient + first);
        if (survey_.products) add_products(thread, logits, size);
        if (survey_.squared) add_square(thread, logits, size);
    }

private:
    // The matrix is symmetric: rows behind a panel's last are left out.
    void add_products(int thread, const float* logits, int64_t size) {
        const int64_t rows = tile_.num_rows, panels = ceil_divide(rows, PANEL);
        float* sums = sums_[thread].data();
        for (int64_t p = 0; p < panels; ++p) {
            const int64_t before = std::min<int64_t>(rows, (p + 1) * PANEL);
            pack(size, rows, std::min<int64_t>(PANEL, rows - p * PANEL), logits + p * PANEL, packed_[thread].data());
            std::fill(sums, sums + before * PANEL, 0.0f);
            add_rows_of_panel(size, before, logits, packed_[thread].data(), sums);
            double* out = survey_.products + (thread * panels + p) * rows * PANEL;
            for (int64_t i = 0; i < before * PANEL; ++i) out[i] += sums[i];
        }
    }

    void add_rows_of_panel(int64_t size, int64_t count, const float* logits, const float* panel, float* sums) const {
        int64_t b = 0;
        for (; b + BLOCK <= count; b += BLOCK) add_outer<BLOCK>(size, logits + b, tile_.num_rows, panel, sums + b * PANEL);
        for (; b < count; ++b) add_outer<1>(size, logits + b, tile_.num_rows, panel, sums + b * PANEL);
    }

    void add_square(int thread, const float* logits, int64_t size) {
        float* gradient = gradient_[thread].data();
        matrix_product<false>(size, tile_.num_rows, tile_.num_features, logits, tile_.features, gradient);
        for (int64_t k = 0; k < size; ++k)
            survey_.squared[thread] += square(gradient + k * tile_.num_features, tile_.num_features);
    }

    const TileGradient& tile_;
    const Survey& survey_;
    std::vector<Floats> logits_, packed_, sums_, gradient_;
};

template <bool L2>
void adam(int64_t size, const float* __restrict__ gradient, const Step& step, float* __restrict__ weight,
          float* __restrict__ first, float* __restrict__ second) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
        const float g = L2 ? gradient[i] + step.l2 * weight[i] : gradient[i];
        const float m = first[i] + step.first_share * (g - first[i]);
        const float v = step.second_decay * second[i] + step.second_share * g * g;
        first[i] = m;
        second[i] = v;
        weight[i] = weight[i] * step.keep - step.rate * m / (std::sqrt(v) * step.inverse_root + step.eps);
    }
}

template <bool NESTEROV>
void momentum(int64_t size, const float* __restrict__ gradient, const Step& step, float* __restrict__ weight,
              float* __restrict__ first) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
        const float g = gradient[i] + step.l2 * weight[i];
        const float m = step.first_decay * first[i] + g;
        first[i] = m;
        weight[i] -= step.rate * (NESTEROV ? g + step.first_decay * m : m);
    }
}

void descend(int64_t size, const float* __restrict__ gradient, const Step& step, float* __restrict__ weight) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) weight[i] -= step.rate * (gradient[i] + step.l2 * weight[i]);
}

// Where weight and states begin that a block of rows has under a panel of columns.
struct Place {
    const float *weight, *first, *second;

    Place(const Step& step, int64_t begin)
        : weight(step.weight + begin),
          first((step.first ? step.first : step.weight) + begin),
          second((step.second ? step.second : step.weight) + begin) {}
};

// out (M, PANEL) = left (M, depth) * panel, of which N vectors are wanted; their squares are added up. The lines at `place` are
// fetched meanwhile; beyond the arrays that does nothing.
template <int M, int N>
INLINED WHOLE_VECTORS void dot_panel(int64_t depth, const float* left, const float* panel, float* out, Lanes& squared,
                                     const Place& place, int64_t row_stride) {
    constexpr uint64_t LINES_OF_ROW = PANEL / CACHE_LINE, LINES = BLOCK * LINES_OF_ROW;
    const float *const weight = place.weight, *const first = place.first, *const second = place.second;
    const uint64_t turns = std::max<int64_t>(depth / STRIDE, 1), each = (LINES + turns - 1) / turns;
    Lanes sums[M][N] = {};
    uint64_t line = 0;
    int64_t d = 0;
    for (; d + STRIDE <= depth; d += STRIDE) {
        for (const uint64_t until = std::min(line + each, LINES); line < until; ++line) {
            const int64_t offset = line / LINES_OF_ROW * row_stride + line % LINES_OF_ROW * CACHE_LINE;
            __builtin_prefetch(weight + offset, 1, 3);
            __builtin_prefetch(first + offset, 1, 3);
            __builtin_prefetch(second + offset, 1, 3);
        }
        multiply<M, N>(STRIDE, left + d, depth, 1, panel + d * PANEL, sums);
    }
    multiply<M, N>(depth - d, left + d, depth, 1, panel + d * PANEL, sums);
    Lanes squares[N] = {};
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) squares[n] += sums[m][n] * sums[m][n];
    for (int n = 0; n < N; ++n) squared += squares[n];
    store<false>(sums, out, PANEL, N * LANES);
}

class Updater {
public:
    Updater(const TileGradient& tile, const Step& step, int threads) : tile_(tile), step_(step) {
        for (int thread = 0; thread < threads; ++thread) {
            logits_.emplace_back(BLOCK * tile.num_rows);
            gradient_.emplace_back(BLOCK * PANEL);
        }
    }

    void operator()(int thread, int64_t first, int64_t size) {
        const int64_t features = tile_.num_features, panels = ceil_divide(features, PANEL);
        float *logits = logits_[thread].data(), *gradient = gradient_[thread].data();
        Lanes squared = {};
        write_logit_gradients(tile_, first, size, logits);
        sum_over_rows(logits, size, tile_.num_rows, step_.bias_gradient + first);
        for (int64_t p = 0; p < panels; ++p) {
            const int64_t ahead = p + AHEAD, next = first + ahead / panels * BLOCK, column = p * PANEL;
            const Place later(step_, next * features + ahead % panels * PANEL);
            const int64_t here = std::min<int64_t>(PANEL, features - column);
            multiply_block(size, here, logits, tile_.features + column * tile_.num_rows, gradient, squared, later);
            for (int64_t k = 0; k < size; ++k) {
                const int64_t begin = (first + k) * features + p * PANEL;
                here == PANEL ? take_step(PANEL, gradient + k * PANEL, begin)  // of a length that the compiler knows
                              : take_step(here, gradient + k * PANEL, begin);
            }
        }
        float sum = 0.0f;
        for (int lane = 0; lane < LANES; ++lane) sum += squared[lane];
        step_.squared[thread] += sum;
    }

private:
    INLINED void multiply_block(int64_t size, int64_t columns, const float* logits, const float* panel, float* out,
                                Lanes& squared, const Place& later) const {
        switch (ceil_divide(columns, LANES)) {
            case 1: multiply_rows<1>(size, logits, panel, out, squared, later); break;
            case 2: multiply_rows<2>(size, logits, panel, out, squared, later); break;
            case 3: multiply_rows<3>(size, logits, panel, out, squared, later); break;
            default: multiply_rows<PANEL_VECTORS>(size, logits, panel, out, squared, later);
        }
    }

    template <int N>
    INLINED void multiply_rows(int64_t size, const float* logits, const float* panel, float* out, Lanes& squared,
                               const Place& later) const {
        const int64_t depth = tile_.num_rows, features = tile_.num_features;
        if (size == BLOCK) return dot_panel<BLOCK, N>(depth, logits, panel, out, squared, later, features);
        for (int64_t k = 0; k < size; ++k)
            dot_panel<1, N>(depth, logits + k * depth, panel, out + k * PANEL, squared, later, features);
    }

    INLINED void take_step(int64_t size, const float* gradient, int64_t begin) const {
        float* weight = step_.weight + begin;
        if (step_.second)
            step_.l2 == 0.0f ? adam<false>(size, gradient, step_, weight, step_.first + begin, step_.second + begin)
                             : adam<true>(size, gradient, step_, weight, step_.first + begin, step_.second + begin);
        else if (step_.first)
            step_.nesterov ? momentum<true>(size, gradient, step_, weight, step_.first + begin)
                           : momentum<false>(size, gradient, step_, weight, step_.first + begin);
        else
            descend(size, gradient, step_, weight);
    }

    const TileGradient& tile_;
    const Step& step_;
    std::vector<Floats> logits_, gradient_;
};

}  // namespace

extern "C" {

// Both return 0, or 1 where there was no memory: an exception must not leave C++.

int rlpheads_survey_tile(const TileGradient* tile, const Survey* survey, int threads) try {
    Surveyor surveyor(*tile, *survey, threads);
    for_each_block(*tile, SURVEYED, threads, surveyor);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

int rlpheads_update_tile(const TileGradient* tile, const Step* step, int threads) try {
    threads = threads_for(tile->width * tile->num_rows, threads);
    Updater updater(*tile, *step, threads);
    for_each_block(*tile, BLOCK, threads, updater);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

}  // extern "C"
