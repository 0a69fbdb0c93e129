// Operations on the images of a batch of bytes, each image its own, one after the other while it is in the cache.
//
// What they do is what loaders/augment/pixel_operations.py says in PyTorch. Operations that are a table of bytes are put together
// and applied at once; a histogram is taken through the tables in front of it.

#include <omp.h>

#include "pixel_image.h"

namespace rlpheads {

// The order is that of `PixelKind` in loaders/augment/pixel_plan.py.
enum Kind : int32_t {
    unchanged, warped, brightness, color, contrast, sharpness, posterize, solarize, solarize_add, autocontrast, equalize,
    blurred, hue
};
constexpr int num_values = 6;

struct Tables {
    uint8_t byte[3][256];
    bool are_neutral;

    void reset() {
        for (auto& table : byte)
            for (int value = 0; value < 256; ++value) table[value] = static_cast<uint8_t>(value);
        are_neutral = true;
    }

    template <typename Function>
    void then(Function function) {
        for (int channel = 0; channel < 3; ++channel)
            for (int value = 0; value < 256; ++value) byte[channel][value] = function(byte[channel][value], channel);
        are_neutral = false;
    }
};

struct Histogram {
    int32_t count[3][256];

    Histogram(const uint8_t* planes, const Tables& tables, int64_t pixels) {
        std::memset(count, 0, sizeof count);
        for (int channel = 0; channel < 3; ++channel) {
            int32_t part[4][256] = {};  // equal bytes behind each other would wait for each other
            const uint8_t* plane = planes + channel * pixels;
            for (int64_t at = 0; at < pixels; ++at) ++part[at & 3][plane[at]];
            for (int value = 0; value < 256; ++value)
                count[channel][tables.byte[channel][value]] +=
                    part[0][value] + part[1][value] + part[2][value] + part[3][value];
        }
    }
};

// Stretches a channel over all bytes, unless it is of one value.
void stretch(Tables& tables, const Histogram& histogram) {
    float least[3], step[3];
    for (int channel = 0; channel < 3; ++channel) {
        const int32_t* count = histogram.count[channel];
        int low = 0, high = 255;
        while (!count[low]) ++low;
        while (!count[high]) --high;
        least[channel] = low == high ? 0.0f : static_cast<float>(low);
        step[channel] = low == high ? 1.0f : static_cast<float>(high - low) * (1.0f / 255.0f);
    }
    tables.then([&](uint8_t value, int channel) { return to_byte((value - least[channel]) / step[channel]); });
}

// Makes every byte of a channel about as frequent, as Pillow does.
void level(Tables& tables, const Histogram& histogram, int64_t pixels) {
    uint8_t table[3][256];
    for (int channel = 0; channel < 3; ++channel) {
        const int32_t* count = histogram.count[channel];
        int last = 255;
        while (!count[last]) --last;
        const int64_t step = (pixels - count[last]) / 255;
        int64_t below = 0;
        for (int value = 0; value < 256; ++value) {
            const int64_t spread = step ? std::min<int64_t>((below + step / 2) / step, 255) : value;
            table[channel][value] = static_cast<uint8_t>(value ? spread : 0);
            below += count[value];
        }
    }
    tables.then([&](uint8_t value, int channel) { return table[channel][value]; });
}

struct Image {
    uint8_t *planes, *other;
    Line line;
    Size size;
    int64_t how;
    Tables tables;

    void flush() {
        if (tables.are_neutral) return;
        for (int channel = 0; channel < 3; ++channel) {
            uint8_t* plane = planes + channel * size.pixels();
            const uint8_t* table = tables.byte[channel];
            for (int64_t at = 0; at < size.pixels(); ++at) plane[at] = table[plane[at]];
        }
        tables.reset();
    }

    // A table of bytes that is known without the image; false for other kinds.
    bool tabulate(int32_t kind, float value) {
        if (kind == brightness) {
            tables.then([=](uint8_t byte, int) { return to_byte(byte * value); });
        } else if (kind == posterize) {
            const int cut = 8 - static_cast<int>(value);
            tables.then([=](uint8_t byte, int) { return static_cast<uint8_t>((byte >> cut) << cut); });
        } else if (kind == solarize) {
            tables.then([=](uint8_t byte, int) { return byte >= value ? static_cast<uint8_t>(255 - byte) : byte; });
        } else if (kind == solarize_add) {
            const int added = static_cast<int>(value);
            tables.then([=](uint8_t byte, int) { return static_cast<uint8_t>(byte < 128 ? byte + added : byte); });
        } else {
            return false;
        }
        return true;
    }

    void apply(int32_t kind, const float* values) {
        if (kind == unchanged || tabulate(kind, values[0])) return;
        if (kind == autocontrast) return stretch(tables, Histogram(planes, tables, size.pixels()));
        if (kind == equalize) return level(tables, Histogram(planes, tables, size.pixels()), size.pixels());
        flush();
        const float ratio = values[0], rest = values[1];
        if (kind == contrast) {
            const float mean = mean_luma(planes, size) * rest;
            tables.then([=](uint8_t byte, int) { return to_byte(byte * ratio + mean); });
        } else if (kind == color) {
            blend_with_luma(planes, size, ratio, rest);
        } else if (kind == hue) {
            rotate_hue(planes, size, values[0]);
        } else {
            if (kind == blurred) blur(planes, other, size, values[0], line.columns);
            if (kind == sharpness) sharpen(planes, other, size, rest);
            if (kind == warped) warp(planes, other, size, values, how, line);
            std::swap(planes, other);
        }
    }

    void load(const uint8_t* from, bool interleaved) {
        const int64_t count = size.pixels();
        if (!interleaved) {
            std::memcpy(planes, from, 3 * count);
            return;
        }
        uint8_t *red = planes, *green = red + count, *blue = green + count;
        for (int64_t at = 0; at < count; ++at) {
            red[at] = from[3 * at];
            green[at] = from[3 * at + 1];
            blue[at] = from[3 * at + 2];
        }
    }

    void store(uint8_t* to, bool interleaved) const {
        const int64_t count = size.pixels();
        if (!interleaved) {
            std::memcpy(to, planes, 3 * count);
            return;
        }
        const uint8_t *red = planes, *green = red + count, *blue = green + count;
        for (int64_t at = 0; at < count; ++at) {
            to[3 * at] = red[at];
            to[3 * at + 1] = green[at];
            to[3 * at + 2] = blue[at];
        }
    }
};

// Numbers of a line, with room for a blur's reach on both sides.
int64_t line_length(int64_t width) { return (width + 2 * blur_reach + 15) / 16 * 16; }

}  // namespace rlpheads

using namespace rlpheads;

// images, out: num_images x (3 x height x width, or height x width x 3 where interleaved). kinds: steps x images; values:
// steps x images x 6. scratch: for each thread as many bytes as the first function says: two images, and two lines of numbers.
extern "C" int64_t rlpheads_pixel_scratch_bytes(int64_t height, int64_t width) {
    return (6 * height * width + 63) / 64 * 64 + 2 * 4 * line_length(width);
}

extern "C" void rlpheads_pixel_pass(
    const uint8_t* images, uint8_t* out, const int32_t* kinds, const float* values, uint8_t* scratch, int64_t num_steps,
    int64_t num_images, int64_t height, int64_t width, int64_t interleaved, int64_t how, int64_t num_threads
) {
    const Size size{height, width};
    const int64_t image_bytes = 3 * size.pixels(), scratch_bytes = rlpheads_pixel_scratch_bytes(height, width);
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads)
    for (int64_t row = 0; row < num_images; ++row) {
        const uint8_t* from = images + row * image_bytes;
        uint8_t* to = out + row * image_bytes;
        bool changes = false;
        for (int64_t step = 0; step < num_steps; ++step) changes |= kinds[step * num_images + row] != unchanged;
        if (!changes) {
            std::memcpy(to, from, image_bytes);
            continue;
        }
        uint8_t* mine = scratch + omp_get_thread_num() * scratch_bytes;
        float* places = reinterpret_cast<float*>(mine + (2 * image_bytes + 63) / 64 * 64);
        Image image{mine, mine + image_bytes, {places, places + line_length(width)}, size, how, {}};
        image.tables.reset();
        image.load(from, interleaved);
        for (int64_t step = 0; step < num_steps; ++step) {
            const int64_t place = step * num_images + row;
            image.apply(kinds[place], values + place * num_values);
        }
        image.flush();
        image.store(to, interleaved);
    }
}
