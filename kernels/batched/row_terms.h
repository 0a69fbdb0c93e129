// One row of logits, all written out: its losses, its measures, and dL/dz of every class.
//
// The formulas are those of rlpheads.kernels.rows (row_softmax, terms), where they are explained.

#pragma once

#include "../cpu/tile_chunk.h"

namespace {

enum Kind : int64_t { NO_REGULARIZER, UNLIKELIHOOD, UNIFORM, REVERSAL, ENTROPY };

constexpr int MAX_LABELS = 2;
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

// Statistics of a row over all its classes; its logits become e^(z - s), 0 at the labels.
class Row {
public:
    // `moments` (K) gets e^(z - s) (z - s) where it is not null.
    Row(float* z, int64_t num_classes, const RowLabels& labels, Kind kind, float* moments)
        : labels_(labels), num_classes_(num_classes) {
        const int64_t first = labels.index[0];
        for (int l = 0; l < labels.count; ++l) label_logit_[l] = z[labels.index[l]];
        before_ = maximum(z, 0, first);
        after_ = maximum(z, first + 1, num_classes);
        if (kind == UNIFORM) mean_logit_ = sum_chunks(num_classes, [z](int64_t j) { return z[j]; }) / num_classes;
        for (int l = 0; l < labels.count; ++l) z[labels.index[l]] = -INF;
        const float top = labels.count == 1 ? larger(before_, after_) : maximum(z, 0, num_classes);
        shift_ = top > -INF ? top : largest_label();
        exponentiate(z, moments);
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

    void exponentiate(float* z, float* moments) {
        const float shift = shift_;
        if (moments != nullptr) {
            moment_ = sum_chunks(num_classes_, [z, moments, shift](int64_t j) {
                const float x = z[j] - shift;
                return moments[j] = x < -87.0f ? 0.0f : exp_near(x) * x;
            });
        }
        sum_ = sum_chunks(num_classes_, [z, shift](int64_t j) { return z[j] = exp_near(z[j] - shift); });
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
        for (int l = 0; l < labels_.count; ++l) labels += odds_[l].minus_log_p() * odds_[l].p() * labels_.present[l];
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
        float p[MAX_LABELS] = {}, mean = moment_ * inverse_sum_;
        const float moment = mean;
        for (int l = 0; l < labels_.count; ++l) {
            p[l] = odds_[l].p() * labels_.present[l];
            mean += p[l] * offset_[l];
        }
        const float others = std::exp(log_others_ - log_sum_);
        for (int l = 0; l < labels_.count; ++l) {
            float apart = offset_[l] * others - moment;
            if (labels_.count == 2) apart += p[1 - l] * (offset_[l] - offset_[1 - l]);
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
    float before_, after_, shift_, sum_, moment_ = 0.0f, log_others_, log_sum_, inverse_sum_;
    double mean_logit_ = 0.0;
};

// Write dL/dz of all classes from the row's exponentials and moments; the latter may be where it is written.
inline void write_gradient(const Coefficients& factors, const RowLabels& labels, int64_t num_classes, const float* exps,
                           const float* moments, float* out) {
    if (moments != nullptr) {
#pragma omp simd
        for (int64_t j = 0; j < num_classes; ++j)
            out[j] = exps[j] * factors.exp + moments[j] * factors.moment + factors.uniform;
    } else {
#pragma omp simd
        for (int64_t j = 0; j < num_classes; ++j) out[j] = exps[j] * factors.exp + factors.uniform;
    }
    for (int l = 0; l < labels.count; ++l) out[labels.index[l]] = factors.uniform;
    for (int l = 0; l < labels.count; ++l) out[labels.index[l]] += factors.label[l];
}

}  // namespace
