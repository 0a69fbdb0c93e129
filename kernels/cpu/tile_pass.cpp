// One tile of classes: logits, exponentials, every row's statistics, and the products with the weight.
//
// The tile is cut into chunks, of a size that does not depend on the number of threads, and a chunk stays in a core's cache
// from its logits (tile_products.h) through its exponentials (tile_chunk.h) to its products. The chunks' statistics are
// merged in order: their bits are the same on any number of threads. Products, and the weight's sum, are summed by each
// thread first, as libraries do.
// rlpheads.kernels.native builds this file, rlpheads.kernels.cpu.tile_native calls it, rlpheads.kernels.cpu.tile_pass holds the
// same in plain PyTorch.

#include "tile_chunk.h"
#include "tile_products.h"
#include "tile_scratch.h"

#include <atomic>
#include <new>
#include <vector>

extern "C" {

// Mirrored in rlpheads.kernels.cpu.tile_native. Arrays are contiguous, and null where there is nothing, or nothing is wanted.
struct Tile {
    const float *weight, *bias;        // (width, num_features), (width)
    const float* features;             // the features' transpose, (num_features, num_rows), in panels
    const int64_t* labels;             // (num_labels, num_rows)
    float* exponentials;               // (width, num_rows), written
    int64_t start, width, num_features, num_rows, num_labels;
};

struct RowState {
    float *shift, *sum, *moment, *label_logit, *max_before, *max_after;
};

struct ClassSums {
    float *exp_weight, *moment_weight, *weight_sum;
    float* thread_products;  // memory for what each thread adds to the first two, in panels
};

}  // extern "C"

namespace {

constexpr int64_t CHUNK = 96;             // classes, whole blocks; of 768 features they are 288 KiB
constexpr int64_t SMALL_CHUNK = 48;       // for few classes, which are then shared out more evenly
constexpr int64_t FEW_CLASSES = 3072;
constexpr int64_t FIRST_CLASSES = 192;    // whose maximum is the first shift
constexpr float NO_CLASS_SHIFT = -1e30f;  // as in rlpheads.kernels.rows.partials

int64_t chunk_size(int64_t width) { return width < FEW_CLASSES ? SMALL_CHUNK : CHUNK; }

int64_t num_chunks(const Tile& tile) { return ceil_divide(tile.width, chunk_size(tile.width)); }

int64_t num_products(const Tile& tile) { return ceil_divide(tile.num_features, PANEL) * PANEL * tile.num_rows; }

int allowed_threads(const Tile& tile, int threads) { return threads_for(tile.num_rows * tile.width, threads); }

Chunk chunk_of(const Tile& tile, int64_t number) {
    const int64_t size = chunk_size(tile.width), begin = number * size;
    return {tile.exponentials + begin * tile.num_rows, tile.bias == nullptr ? nullptr : tile.bias + begin,
            tile.start + begin, std::min(size, tile.width - begin), tile.num_rows};
}

const float* weight_of(const Tile& tile, const Chunk& chunk) {
    return tile.weight + (chunk.first - tile.start) * tile.num_features;
}

void write_logits(const Tile& tile, const Chunk& chunk) {
    matrix_product<false>(chunk.size, tile.num_features, tile.num_rows, weight_of(tile, chunk), tile.features,
                          chunk.logits);
}

// Split-K over the classes: what one thread sums over its chunks, and the buffers that it takes.
struct ThreadSums {
    float *exp_weight, *moment_weight;  // (panels, num_rows, PANEL), in memory that the caller keeps
    Floats weight_sum, moments, packed, chunk_sum;

    ThreadSums(const Tile& tile, const RowState& rows, const ClassSums& wanted, int64_t thread)
        : exp_weight(nullptr), moment_weight(nullptr),
          weight_sum(wanted.weight_sum ? tile.num_features : 0),
          moments(rows.moment ? CHUNK * tile.num_rows : 0),
          packed(wanted.exp_weight ? CHUNK * PANEL : 0),
          chunk_sum(wanted.weight_sum ? tile.num_features : 0) {
        const int64_t size = num_products(tile), kinds = wanted.moment_weight ? 2 : 1;
        if (wanted.exp_weight) exp_weight = wanted.thread_products + thread * kinds * size;
        if (wanted.moment_weight) moment_weight = exp_weight + size;
    }

    void clear_products(const Tile& tile) {
        for (float* sums : {exp_weight, moment_weight})
            if (sums) std::fill(sums, sums + num_products(tile), 0.0f);
    }

    void add(const Tile& tile, const ClassSums& wanted, const Chunk& chunk) {
        const float* weight = weight_of(tile, chunk);
        const auto add_product = [&](const float* left, float* sums) {
            add_transposed_product(chunk.size, tile.num_rows, tile.num_features, left, weight, packed.data(), sums);
        };
        if (exp_weight) add_product(chunk.logits, exp_weight);
        if (moment_weight) add_product(moments.data(), moment_weight);
        if (wanted.weight_sum) add_rows(chunk.size, tile.num_features, weight, chunk_sum.data(), weight_sum.data());
    }
};

// One attempt at a tile with the rows' present shifts (online softmax); see rlpheads_reduce_tile.
class Attempt {
public:
    Attempt(const Tile& tile, const RowState& rows, const ClassSums& sums, float max_above_shift, int threads)
        : tile_(tile), rows_(rows), sums_(sums), max_above_shift_(max_above_shift), chunks_(num_chunks(tile)),
          threads_(allowed_threads(tile, threads)), own_before_(tile.num_rows, -INF), own_after_(tile.num_rows, -INF),
          tops_(chunks_ * tile.num_rows, -INF), chunk_sums_(chunks_ * tile.num_rows),
          chunk_moments_(rows.moment ? chunks_ * tile.num_rows : 0) {
        thread_sums_.reserve(threads_);
        for (int thread = 0; thread < threads_; ++thread) thread_sums_.emplace_back(tile, rows, sums, thread);
    }

    // Whether every row's maximum lies within `max_above_shift` of its shift; if not, nothing was added, and shifts are raised.
    bool succeeds() {
        const int64_t first = start_shifts();
#pragma omp parallel for schedule(static) num_threads(threads_)
        for (int part = 0; part < threads_; ++part) sweep_part(part, first);
        merge_maxima();
        if (raise_shifts()) return false;
        add_sums();
        return true;
    }

private:
    // Give the rows that have seen no class the maximum of the first chunks. Returns the number of chunks with logits.
    int64_t start_shifts() {
        bool is_new = false;
        for (int64_t b = 0; b < tile_.num_rows; ++b) is_new |= rows_.shift[b] == NO_CLASS_SHIFT;
        if (!is_new) return 0;
        const int64_t first = std::min(ceil_divide(FIRST_CLASSES, chunk_size(tile_.width)), chunks_);
#pragma omp parallel for schedule(static) num_threads(threads_)
        for (int64_t c = 0; c < first; ++c) write_other_logits(c);
        std::vector<float> top(tile_.num_rows, -INF);
        for (int64_t c = 0; c < first; ++c) raise_to_maximum(chunk_of(tile_, c), top.data());
        for (int64_t b = 0; b < tile_.num_rows; ++b)
            if (rows_.shift[b] == NO_CLASS_SHIFT && top[b] > -INF) rows_.shift[b] = top[b];
        return first;
    }

    // The logits of a chunk, those of the labels read and then set to -infinity.
    void write_other_logits(int64_t c) {
        const Chunk chunk = chunk_of(tile_, c);
        write_logits(tile_, chunk);
        take_labels(chunk, tile_.labels, tile_.num_labels, rows_.label_logit);
    }

    // Cut here and not by OpenMP, which may grant fewer threads than were asked for: the sums stay the same, and complete.
    void sweep_part(int part, int64_t first) {
        ThreadSums& mine = thread_sums_[part];
        mine.clear_products(tile_);
        for (int64_t c = part * chunks_ / threads_; c < (part + 1) * chunks_ / threads_; ++c) sweep(c, mine, c >= first);
    }

    void sweep(int64_t c, ThreadSums& mine, bool needs_logits) {
        if (needs_logits) write_other_logits(c);
        const Chunk chunk = chunk_of(tile_, c);
        float *sum = chunk_sums_.data() + c * tile_.num_rows, *top = tops_.data() + c * tile_.num_rows;
        split_maximum(chunk, tile_.labels, own_before_.data(), own_after_.data());
        if (rows_.moment)
            exponentiate_with_moments(chunk, rows_.shift, sum, top, mine.moments.data(),
                                      chunk_moments_.data() + c * tile_.num_rows);
        else
            exponentiate(chunk, rows_.shift, sum, top);
        for (int64_t b = 0; b < tile_.num_rows; ++b)
            if (is_beyond(b, top[b])) is_raised_ = true;
        if (!is_raised_) mine.add(tile_, sums_, chunk);  // else the attempt has failed
    }

    bool is_beyond(int64_t b, float top) const { return top > rows_.shift[b] + max_above_shift_; }

    // The maxima below and above the rows' first labels.
    void merge_maxima() {
        for (int64_t b = 0; b < tile_.num_rows; ++b) {
            float before = larger(own_before_[b], rows_.max_before[b]), after = larger(own_after_[b], rows_.max_after[b]);
            for (int64_t c = 0; c < chunks_; ++c) {
                const Chunk chunk = chunk_of(tile_, c);
                const float top = tops_[c * tile_.num_rows + b];
                if (tile_.labels[b] >= chunk.first + chunk.size) before = larger(top, before);
                if (tile_.labels[b] < chunk.first) after = larger(top, after);
            }
            rows_.max_before[b] = before;
            rows_.max_after[b] = after;
        }
    }

    // Raise the shifts that are too low to the rows' maxima, with all that was summed with them. Returns if there was one.
    bool raise_shifts() {
        if (!is_raised_) return false;
        for (int64_t b = 0; b < tile_.num_rows; ++b) {
            float top = -INF;
            for (int64_t c = 0; c < chunks_; ++c) top = larger(tops_[c * tile_.num_rows + b], top);
            if (is_beyond(b, top)) raise_shift(b, top);
        }
        return true;
    }

    // With d = s - s': e^(z-s') = e^d e^(z-s), and e^(z-s') (z-s') = e^d (e^(z-s) (z-s) + d e^(z-s)).
    void raise_shift(int64_t b, float top) {
        const float drop = rows_.shift[b] - top, scale = std::exp(drop);
        if (rows_.moment) rows_.moment[b] = scale * (rows_.moment[b] + drop * rows_.sum[b]);
        rows_.sum[b] *= scale;
        for (int64_t i = b * tile_.num_features; i < (b + 1) * tile_.num_features; ++i) {
            if (sums_.moment_weight)
                sums_.moment_weight[i] = scale * (sums_.moment_weight[i] + drop * sums_.exp_weight[i]);
            if (sums_.exp_weight) sums_.exp_weight[i] *= scale;
        }
        rows_.shift[b] = top;
    }

    void add_sums() {
        for (int64_t b = 0; b < tile_.num_rows; ++b) {
            rows_.sum[b] += static_cast<float>(over_chunks(chunk_sums_, b));
            if (rows_.moment) rows_.moment[b] += static_cast<float>(over_chunks(chunk_moments_, b));
        }
        add_products(sums_.exp_weight, &ThreadSums::exp_weight);
        add_products(sums_.moment_weight, &ThreadSums::moment_weight);
        if (sums_.weight_sum)
            for (ThreadSums& each : thread_sums_)
                for (int64_t d = 0; d < tile_.num_features; ++d) sums_.weight_sum[d] += each.weight_sum.data()[d];
    }

    double over_chunks(const std::vector<float>& values, int64_t b) const {
        double sum = 0.0;
        for (int64_t c = 0; c < chunks_; ++c) sum += values[c * tile_.num_rows + b];
        return sum;
    }

    // Add the threads' products, which lie in panels of features, to an array (num_rows, num_features).
    void add_products(float* out, float* ThreadSums::*sums) {
        if (out == nullptr) return;
        for (ThreadSums& each : thread_sums_)
#pragma omp parallel for schedule(static) num_threads(threads_)
            for (int64_t b = 0; b < tile_.num_rows; ++b)
                for (int64_t first = 0; first < tile_.num_features; first += PANEL) {
                    const float* panel = each.*sums + first * tile_.num_rows + b * PANEL;
                    float* row = out + b * tile_.num_features + first;
                    const int64_t columns = std::min<int64_t>(PANEL, tile_.num_features - first);
                    for (int64_t d = 0; d < columns; ++d) row[d] += panel[d];
                }
    }

    const Tile& tile_;
    const RowState& rows_;
    const ClassSums& sums_;
    const float max_above_shift_;
    const int64_t chunks_;
    const int threads_;
    std::atomic<bool> is_raised_{false};
    std::vector<float> own_before_, own_after_, tops_, chunk_sums_, chunk_moments_;
    std::vector<ThreadSums> thread_sums_;
};

}  // namespace

extern "C" {

int rlpheads_panel() { return PANEL; }

// See rlpheads.kernels.cpu.tile_native.NativePass.reduce. A row's shift is the maximum of the first chunks; a later maximum more
// than `max_above_shift` above it raises it, which is known only when the tile is overwritten: then it is computed once more.
// Returns 0, or 1 where there was no memory for it: an exception must not leave C++.
int rlpheads_reduce_tile(const Tile* tile, const RowState* rows, const ClassSums* sums, float max_above_shift,
                         int threads) try {
    while (!Attempt(*tile, *rows, *sums, max_above_shift, threads).succeeds()) {
    }
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

// The tile's exponentials once more, with the shift that it had: e^(z + bias - shift), 0 at the labels. Returns the same.
int rlpheads_exponentiate_tile(const Tile* tile, const float* shift, int threads) try {
    const int64_t chunks = num_chunks(*tile), rows = tile->num_rows;
    std::vector<float> label_logit(tile->num_labels * rows), sums(chunks * rows), tops(chunks * rows);  // not looked at
#pragma omp parallel for schedule(static) num_threads(allowed_threads(*tile, threads))
    for (int64_t c = 0; c < chunks; ++c) {
        const Chunk chunk = chunk_of(*tile, c);
        write_logits(*tile, chunk);
        take_labels(chunk, tile->labels, tile->num_labels, label_logit.data());
        exponentiate(chunk, shift, sums.data() + c * rows, tops.data() + c * rows);
    }
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

// gradient (width, num_features) = exponentials (width, num_rows) times the rows in panels of features.
void rlpheads_weight_gradient(const float* exponentials, const float* rows, float* gradient, int64_t width,
                              int64_t num_rows, int64_t num_features, int threads) {
    const bool streams = can_stream(gradient, width, num_features);
    const int64_t chunk = chunk_size(width);
#pragma omp parallel num_threads(threads_for(num_rows * width, threads))
    {
#pragma omp for schedule(static)
        for (int64_t begin = 0; begin < width; begin += chunk) {
            const int64_t size = std::min(chunk, width - begin);
            const float* left = exponentials + begin * num_rows;
            float* out = gradient + begin * num_features;
            if (streams)
                matrix_product<true>(size, num_rows, num_features, left, rows, out);
            else
                matrix_product<false>(size, num_rows, num_features, left, rows, out);
        }
        finish_streams();
    }
}

}  // extern "C"
