// One row: its losses, its measures, and dL/dz of every class, from all its logits or from statistics of ranges of them.
//
// The formulas are those of rlpheads.kernels.rows (row_softmax, terms), where they are explained.

#pragma once

#include "../cpu/tile_chunk.h"

namespace {

enum Kind : int64_t { NO_REGULARIZER, UNLIKELIHOOD, UNIFORM, REVERSAL, ENTROPY };

constexpr int MAX_LABELS = 2;
constexpr float NO_CLASS_SHIFT = -1e30f;  // finite, so that differences of shifts are never NaN
constexpr float LOG_2 = 0.69314718055994531f;
constexpr int64_t SUM_CHUNK = 512;  // so many terms are summed in float, chunks in double

// The labels of a row, their weights, and whether each is a class of its own.
struct RowLabels {
    int64_t count;
    int64_t index[MAX_LABELS];
    float weight[MAX_LABELS], present[MAX_LABELS];
};

struct RowValues {
    float cross_entropy, regularizer, bits, margin, lse;
    bool hit;
};

// dL/dz_j of a class that is no label = exp * e^(z_j - s) + moment * e^(z_j - s) (z_j - s) + uniform; of a label
// label + uniform.
struct Coefficients {
    float exp = 0.0f, moment = 0.0f, uniform = 0.0f, label[MAX_LABELS] = {};
};

// The same multiples of a range's exponentials, which were taken with its own shift, less `offset` than the merged row's, and
// add up to `sum`.
inline Coefficients of_range(Coefficients factors, float offset, float sum) {
    const float scale = std::exp(offset);
    factors.exp = sum > 0.0f ? scale * (factors.exp + offset * factors.moment) : 0.0f;
    factors.moment = sum > 0.0f ? scale * factors.moment : 0.0f;
    return factors;
}

// log-odds d of a label: e^-|d| and log(1 + e^-|d|), from which softplus and the logistic function of d and -d follow.
struct LogOdds {
    float value = 0.0f, small = 0.0f, tail = 0.0f;

    LogOdds() = default;
    explicit LogOdds(float d) : value(d), small(std::exp(-std::fabs(d))), tail(std::log1p(small)) {}

    float minus_log_p() const { return larger(-value, 0.0f) + tail; }             // -log p = softplus(-d)
    float minus_log_rest() const { return larger(value, 0.0f) + tail; }           // -log(1 - p) = softplus(d)
    float p() const { return (value < 0.0f ? small : 1.0f) / (1.0f + small); }
    float one_minus_p() const { return (value > 0.0f ? small : 1.0f) / (1.0f + small); }
};

inline float log_add(float a, float b) {
    const float most = a > b ? a : b;
    return most == -INF ? most : most + std::log1p(std::exp(-std::fabs(a - b)));
}

inline float maximum(const float* z, int64_t begin, int64_t end) {
    float most = -INF;
#pragma omp simd reduction(max : most)
    for (int64_t j = begin; j < end; ++j) most = most > z[j] ? most : z[j];
    return most;
}

template <class Term>
inline double sum_chunks(int64_t size, const Term& term) {
    double total = 0.0;
    for (int64_t first = 0; first < size; first += SUM_CHUNK) {
        const int64_t end = first + SUM_CHUNK < size ? first + SUM_CHUNK : size;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = first; j < end; ++j) sum += term(j);
        total += sum;
    }
    return total;
}

// A contiguous range of the classes; the whole head is the one that starts at 0.
struct HeldClasses {
    int64_t start, count;

    // Place in the range of a label, -1 where it lies outside.
    int64_t place(int64_t label) const {
        const int64_t place = label - start;
        return place >= 0 && place < count ? place : -1;
    }
};

// Statistics of a row over a range of classes; the members of rlpheads.kernels.rows.partials.Partials.
struct RowSums {
    float shift = NO_CLASS_SHIFT, sum = 0.0f, moment = 0.0f;
    double logits = 0.0;
    float label_logit[MAX_LABELS] = {-INF, -INF}, before = -INF, after = -INF;
};

// The row's logits become e^(z - s), 0 at the labels; `moments` gets e^(z - s) (z - s) where it is not null.
inline RowSums sum_range(float* z, HeldClasses held, const RowLabels& labels, Kind kind, float* moments) {
    RowSums found;
    const auto clamped = [held](int64_t place) { return place < 0 ? 0 : place > held.count ? held.count : place; };
    const int64_t first = labels.index[0] - held.start;
    found.before = maximum(z, 0, clamped(first));
    found.after = maximum(z, clamped(first + 1), held.count);
    if (kind == UNIFORM) found.logits = sum_chunks(held.count, [z](int64_t j) { return z[j]; });
    for (int l = 0; l < labels.count; ++l)
        if (const int64_t place = held.place(labels.index[l]); place >= 0) found.label_logit[l] = z[place];
    for (int l = 0; l < labels.count; ++l)
        if (const int64_t place = held.place(labels.index[l]); place >= 0) z[place] = -INF;
    const float top = labels.count == 1 ? larger(found.before, found.after) : maximum(z, 0, held.count);
    if (top > -INF) found.shift = top;
    const float shift = found.shift;
    if (moments != nullptr)
        found.moment = sum_chunks(held.count, [z, moments, shift](int64_t j) {
            const float x = z[j] - shift;
            return moments[j] = x < -87.0f ? 0.0f : exp_near(x) * x;
        });
    found.sum = sum_chunks(held.count, [z, shift](int64_t j) { return z[j] = exp_near(z[j] - shift); });
    return found;
}

// The same of a row of few classes, whose numbers fill whole vectors: `width` of them, those behind the last class arbitrary
// and 0 afterwards. Labels are passed over by comparisons, since a vector that was written in part is read slowly.
inline RowSums sum_short_row(float* z, int32_t count, int32_t width, const RowLabels& labels, Kind kind, float* moments) {
    RowSums found;
    const int32_t own = static_cast<int32_t>(labels.index[0]);
    const int32_t other = labels.count == 2 ? static_cast<int32_t>(labels.index[1]) : own;
    float before = -INF, after = -INF, top = -INF, logits = 0.0f, sum = 0.0f, moment = 0.0f;
#pragma omp simd reduction(max : before, after, top)
    for (int32_t j = 0; j < width; ++j) {
        const float logit = j < count ? z[j] : -INF, left = j < own ? logit : -INF, right = j > own ? logit : -INF;
        const float rest = j == own || j == other ? -INF : logit;
        before = before > left ? before : left;
        after = after > right ? after : right;
        top = top > rest ? top : rest;
    }
    if (kind == UNIFORM) {
#pragma omp simd reduction(+ : logits)
        for (int32_t j = 0; j < width; ++j) logits += j < count ? z[j] : 0.0f;
    }
    for (int l = 0; l < labels.count; ++l) found.label_logit[l] = z[labels.index[l]];
    const float shift = top > -INF ? top : NO_CLASS_SHIFT;
    if (moments != nullptr) {
#pragma omp simd reduction(+ : moment)
        for (int32_t j = 0; j < width; ++j) {
            const float x = z[j] - shift, product = exp_near(x) * x;
            moments[j] = x < -87.0f || j >= count || j == own || j == other ? 0.0f : product;
            moment += moments[j];
        }
    }
#pragma omp simd reduction(+ : sum)
    for (int32_t j = 0; j < width; ++j) {
        const float e = exp_near(z[j] - shift);
        z[j] = j >= count || j == own || j == other ? 0.0f : e;
        sum += z[j];
    }
    found.shift = shift, found.sum = sum, found.moment = moment, found.logits = logits;
    found.before = before, found.after = after;
    return found;
}

// Losses, measures and gradients of a row from its statistics over all classes.
class Row {
public:
    Row(const RowSums& sums, const RowLabels& labels, int64_t num_classes)
        : labels_(labels), num_classes_(num_classes), before_(sums.before), after_(sums.after), sum_(sums.sum),
          moment_(sums.moment), mean_logit_(sums.logits / num_classes) {
        for (int l = 0; l < labels.count; ++l) label_logit_[l] = sums.label_logit[l];
        shift_ = sums.sum > 0.0f ? sums.shift : largest_label();
        log_others_ = std::log(sum_);
        for (int l = 0; l < labels.count; ++l) offset_[l] = label_logit_[l] - shift_;
        for (int l = 0; l < labels.count; ++l) {
            log_rest_[l] = log_others_;
            if (labels.count == 2 && labels.present[1] > 0.0f) log_rest_[l] = log_add(log_others_, offset_[1 - l]);
            odds_[l] = LogOdds(offset_[l] - log_rest_[l]);
        }
        log_sum_ = larger(log_rest_[0], offset_[0]) + odds_[0].tail;
        find_inverse_sum();
    }

    // s, which the multiples of exponentials are relative to.
    float shift() const { return shift_; }

    // `log_num_classes`: log K.
    RowValues values(Kind kind, float log_num_classes) const {
        RowValues found = {};
        found.cross_entropy = weighted([this](int l) { return odds_[l].minus_log_p(); });
        found.regularizer = regularizer(kind, found.cross_entropy, log_num_classes);
        found.bits = (log_num_classes - odds_[0].minus_log_p()) / LOG_2;
        found.margin = label_logit_[0] - (before_ > after_ ? before_ : after_);
        found.lse = shift_ + log_sum_;
        found.hit = label_logit_[0] > before_ && label_logit_[0] >= after_;
        return found;
    }

    // p_j - w_j; where w > 1/2 as (1 - w) - (1 - p), which does not cancel as p -> 1.
    Coefficients cross_entropy() const {
        Coefficients found;
        found.exp = inverse_sum_;
        for (int l = 0; l < labels_.count; ++l) {
            const float weight = labels_.weight[l];
            const float near = weight > 0.5f ? (1.0f - weight) - odds_[l].one_minus_p() : odds_[l].p() - weight;
            found.label[l] = near * labels_.present[l];
        }
        return found;
    }

    Coefficients regularizer_gradient(Kind kind) const {
        if (kind == UNLIKELIHOOD) return unlikelihood();
        if (kind == UNIFORM) return uniform();
        if (kind == ENTROPY) return entropy();
        Coefficients found = cross_entropy();
        found.exp = -found.exp;
        for (float& label : found.label) label = -label;
        return found;
    }

private:
    float largest_label() const {
        return labels_.count == 1 ? label_logit_[0] : std::fmax(label_logit_[0], label_logit_[1]);
    }

    // Scaled by the largest of the labels' own terms, so that no lead of a label overflows.
    void find_inverse_sum() {
        float lead = 0.0f, labels = 0.0f;
        for (int l = 0; l < labels_.count; ++l) lead = larger(offset_[l], lead);
        for (int l = 0; l < labels_.count; ++l)
            labels += (offset_[l] == lead ? 1.0f : std::exp(offset_[l] - lead)) * labels_.present[l];
        const float drop = lead > 0.0f ? std::exp(-lead) : 1.0f;
        inverse_sum_ = drop / (sum_ * drop + labels);
    }

    template <class Value>
    float weighted(const Value& value) const {
        float sum = 0.0f;
        for (int l = 0; l < labels_.count; ++l) sum += labels_.weight[l] * value(l);
        return sum;
    }

    float regularizer(Kind kind, float cross_entropy, float log_num_classes) const {
        if (kind == UNLIKELIHOOD) return weighted([this](int l) { return odds_[l].minus_log_rest(); });
        if (kind == UNIFORM) return log_sum_ + (shift_ - static_cast<float>(mean_logit_));
        if (kind == REVERSAL) return -cross_entropy;
        if (kind != ENTROPY) return 0.0f;
        float labels = 0.0f;
        for (int l = 0; l < labels_.count; ++l)  // finite, so that its product with p = 0 is 0
            labels += smaller(odds_[l].minus_log_p(), -NO_CLASS_SHIFT) * odds_[l].p() * labels_.present[l];
        const float others = std::exp(log_others_ - log_sum_) * log_sum_ - moment_ * inverse_sum_;
        return log_num_classes - (labels + others);
    }

    Coefficients unlikelihood() const {
        Coefficients found;
        float share[MAX_LABELS] = {};
        for (int l = 0; l < labels_.count; ++l) {
            share[l] = labels_.weight[l] * odds_[l].p();
            found.exp -= share[l] * std::exp(-log_rest_[l]);
        }
        found.label[0] = share[0];
        if (labels_.count == 2) {
            found.label[1] = share[1];
            for (int l = 0; l < 2 && labels_.present[1] > 0.0f; ++l)
                found.label[l] -= share[1 - l] * std::exp(offset_[l] - log_rest_[1 - l]);
        }
        return found;
    }

    Coefficients uniform() const {
        Coefficients found;
        found.exp = inverse_sum_;
        found.uniform = -1.0f / num_classes_;
        for (int l = 0; l < labels_.count; ++l) found.label[l] = odds_[l].p() * labels_.present[l];
        return found;
    }

    Coefficients entropy() const {
        Coefficients found;
        float p[MAX_LABELS] = {}, offset[MAX_LABELS] = {}, mean = moment_ * inverse_sum_;
        const float moment = mean;
        for (int l = 0; l < labels_.count; ++l) {
            p[l] = odds_[l].p() * labels_.present[l];
            offset[l] = larger(offset_[l], NO_CLASS_SHIFT);  // finite, too
            mean += p[l] * offset[l];
        }
        const float others = std::exp(log_others_ - log_sum_);
        for (int l = 0; l < labels_.count; ++l) {
            float apart = offset[l] * others - moment;
            if (labels_.count == 2) apart += p[1 - l] * (offset[l] - offset[1 - l]);
            found.label[l] = p[l] * apart;
        }
        found.exp = -mean * inverse_sum_;
        found.moment = inverse_sum_;
        return found;
    }

    RowLabels labels_;
    int64_t num_classes_;
    float label_logit_[MAX_LABELS], offset_[MAX_LABELS], log_rest_[MAX_LABELS];
    LogOdds odds_[MAX_LABELS];
    float before_, after_, sum_, moment_;
    double mean_logit_;
    float shift_, log_others_, log_sum_, inverse_sum_;
};

// Write dL/dz of a range's classes from the row's exponentials and moments; the latter may be where it is written. `written`:
// so many numbers may be written, of which those behind the classes mean nothing.
inline void write_gradient(const Coefficients& factors, const RowLabels& labels, HeldClasses held, const float* exps,
                           const float* moments, float* out, int64_t written) {
    if (moments != nullptr) {
#pragma omp simd
        for (int64_t j = 0; j < written; ++j)
            out[j] = exps[j] * factors.exp + moments[j] * factors.moment + factors.uniform;
    } else {
#pragma omp simd
        for (int64_t j = 0; j < written; ++j) out[j] = exps[j] * factors.exp + factors.uniform;
    }
    for (int l = 0; l < labels.count; ++l)
        if (const int64_t place = held.place(labels.index[l]); place >= 0) out[place] = factors.uniform;
    for (int l = 0; l < labels.count; ++l)
        if (const int64_t place = held.place(labels.index[l]); place >= 0) out[place] += factors.label[l];
}

}  // namespace
