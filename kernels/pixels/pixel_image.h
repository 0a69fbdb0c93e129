// One image in planes of bytes, and the operations on it that need more than a table of bytes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace rlpheads {

struct Size {
    int64_t height, width;
    int64_t pixels() const { return height * width; }
};

enum Interpolation : int64_t { nearest, bilinear, bicubic };

// `to_bytes` of pixel_operations.py: cut off at the ends, then to a whole number.
inline uint8_t to_byte(float value) { return static_cast<uint8_t>(std::min(std::max(value, 0.0f), 255.0f)); }

inline int64_t between(int64_t value, int64_t most) { return std::min(std::max<int64_t>(value, 0), most); }

// The luma of torchvision's rgb_to_grayscale, cut off to a whole number.
inline float luma(uint8_t red, uint8_t green, uint8_t blue) {
    return static_cast<float>(static_cast<uint8_t>(red * 0.2989f + green * 0.587f + blue * 0.114f));
}

inline float mean_luma(const uint8_t* planes, Size size) {
    const int64_t count = size.pixels();
    const uint8_t *red = planes, *green = red + count, *blue = green + count;
    int64_t sum = 0;
    for (int64_t start = 0; start < count; start += 4096) {
        const int64_t stop = std::min(count, start + 4096);
        int32_t part = 0;
        for (int64_t at = start; at < stop; ++at) part += static_cast<int32_t>(luma(red[at], green[at], blue[at]));
        sum += part;
    }
    return static_cast<float>(sum) / static_cast<float>(count);
}

inline void blend_with_luma(uint8_t* planes, Size size, float ratio, float rest) {
    const int64_t count = size.pixels();
    uint8_t *red = planes, *green = red + count, *blue = green + count;
    for (int64_t at = 0; at < count; ++at) {
        const float grey = luma(red[at], green[at], blue[at]) * rest;
        red[at] = to_byte(red[at] * ratio + grey);
        green[at] = to_byte(green[at] * ratio + grey);
        blue[at] = to_byte(blue[at] * ratio + grey);
    }
}

// Blends with the image smoothed by 3 x 3, the middle five times as heavy; the rim stays.
inline void sharpen(const uint8_t* from, uint8_t* to, Size size, float rest) {
    const int64_t width = size.width;
    std::memcpy(to, from, 3 * size.pixels());
    for (int channel = 0; channel < 3; ++channel) {
        for (int64_t line = 1; line + 1 < size.height; ++line) {
            const uint8_t* row = from + channel * size.pixels() + line * width;
            const uint8_t *above = row - width, *below = row + width;
            uint8_t* out = to + channel * size.pixels() + line * width;
            for (int64_t at = 1; at + 1 < width; ++at) {
                const int block = above[at - 1] + above[at] + above[at + 1] + row[at - 1] + 5 * row[at] + row[at + 1] +
                                  below[at - 1] + below[at] + below[at + 1];
                const float smooth = std::nearbyint(static_cast<float>(block) / 13.0f);
                out[at] = to_byte(row[at] + (smooth - row[at]) * rest);
            }
        }
    }
}

constexpr int blur_reach = 6;

// The place of a pixel beyond the edge in the image that is mirrored there.
inline int64_t mirrored(int64_t at, int64_t length) { return length - 1 - std::abs(length - 1 - std::abs(at)); }

// A Gaussian of this many pixels, of 13 taps; `buffer`: width + 12 numbers.
inline void blur(const uint8_t* from, uint8_t* to, Size size, float sigma, float* buffer) {
    float weights[2 * blur_reach + 1], sum = 0;
    for (int tap = -blur_reach; tap <= blur_reach; ++tap) {
        const float distance = static_cast<float>(tap) / sigma;
        sum += weights[tap + blur_reach] = std::exp(-0.5f * distance * distance);
    }
    for (float& weight : weights) weight /= sum;
    for (int channel = 0; channel < 3; ++channel) {
        const uint8_t* plane = from + channel * size.pixels();
        for (int64_t line = 0; line < size.height; ++line) {
            float* middle = buffer + blur_reach;
            std::fill(middle, middle + size.width, 0.0f);
            for (int tap = -blur_reach; tap <= blur_reach; ++tap) {
                const uint8_t* row = plane + mirrored(line + tap, size.height) * size.width;
                for (int64_t at = 0; at < size.width; ++at) middle[at] += weights[tap + blur_reach] * row[at];
            }
            for (int64_t at = 1; at <= blur_reach; ++at) {
                middle[-at] = middle[at];
                middle[size.width - 1 + at] = middle[size.width - 1 - at];
            }
            uint8_t* out = to + channel * size.pixels() + line * size.width;
            for (int64_t at = 0; at < size.width; ++at) {
                float blurred = 0;
                for (int tap = 0; tap <= 2 * blur_reach; ++tap) blurred += weights[tap] * buffer[at + tap];
                out[at] = static_cast<uint8_t>(std::nearbyint(blurred));
            }
        }
    }
}

// Turns the hue by a fraction of the circle; value and saturation stay. Bytes are 256 equal steps of [0, 1], as in torchvision.
inline void rotate_hue(uint8_t* planes, Size size, float turns) {
    const int64_t count = size.pixels();
    uint8_t* plane[3] = {planes, planes + count, planes + 2 * count};
    constexpr float offsets[3] = {5, 3, 1};
    for (int64_t at = 0; at < count; ++at) {
        const float red = plane[0][at], green = plane[1][at], blue = plane[2][at];
        const float value = std::max(std::max(red, green), blue);
        const float chroma = value - std::min(std::min(red, green), blue), divisor = chroma == 0 ? 1.0f : chroma;
        float sixth = value == green ? (blue - red) / divisor + 2 : (red - green) / divisor + 4;
        sixth = (value == red ? (green - blue) / divisor : sixth) + 6 * turns;
        for (int channel = 0; channel < 3; ++channel) {
            float place = sixth + offsets[channel];
            place -= 6 * std::floor(place / 6);
            const float share = std::min(std::max(std::min(place, 4 - place), 0.0f), 1.0f);
            plane[channel][at] = static_cast<uint8_t>((value - chroma * share) * (255.999f / 255.0f));
        }
    }
}

// Where the pixels of one line come from: columns and lines, in pixels, and whether that lies in the image.
struct Line {
    float *columns, *lines;

    void place(const float* matrix, int64_t line, Size size) const {
        const float y = line - (size.height - 1) / 2.0f, middle = (size.width - 1) / 2.0f;
        const float to_column = matrix[2] + (size.width - 1) / 2.0f, to_line = matrix[5] + (size.height - 1) / 2.0f;
        const float by_column = matrix[1] * y, by_line = matrix[4] * y;
        for (int64_t at = 0; at < size.width; ++at) {
            const float x = static_cast<float>(at) - middle;
            columns[at] = matrix[0] * x + by_column + to_column;
            lines[at] = matrix[3] * x + by_line + to_line;
        }
    }
};

inline void warp_nearest(const uint8_t* from, uint8_t* to, Size size, const float* matrix, Line line) {
    const int64_t count = size.pixels(), width = size.width;
    for (int64_t y = 0; y < size.height; ++y) {
        line.place(matrix, y, size);
        uint8_t* out = to + y * width;
        for (int64_t at = 0; at < width; ++at) {
            const int column = static_cast<int>(std::nearbyint(line.columns[at]));
            const int row = static_cast<int>(std::nearbyint(line.lines[at]));
            const bool inside = column >= 0 && column < width && row >= 0 && row < size.height;
            const int64_t place = inside ? row * width + column : 0;
            const uint8_t mask = inside ? 255 : 0;
            for (int channel = 0; channel < 3; ++channel) out[channel * count + at] = from[channel * count + place] & mask;
        }
    }
}

// Pillow's cubic weights (a = -1) and its linear ones, of the taps around a place `part` of a pixel behind the second (first).
template <int taps>
inline void weigh(float part, float* weights) {
    if (taps == 2) {
        weights[0] = 1 - part;
        weights[1] = part;
    } else {
        const float squared = part * part, cubed = squared * part;
        weights[0] = -part + 2 * squared - cubed;
        weights[1] = 1 - 2 * squared + cubed;
        weights[2] = part + squared - cubed;
        weights[3] = cubed - squared;
    }
}

// Between pixels; beyond the edge the last pixel is repeated, and what lies more than half a pixel outside is black.
template <int taps>
inline void warp_between(const uint8_t* from, uint8_t* to, Size size, const float* matrix, Line line) {
    const int64_t count = size.pixels(), width = size.width;
    for (int64_t y = 0; y < size.height; ++y) {
        line.place(matrix, y, size);
        for (int64_t at = 0; at < width; ++at) {
            const float column = line.columns[at], row = line.lines[at];
            uint8_t* out = to + y * width + at;
            if (!(column >= -0.5f && column < width - 0.5f && row >= -0.5f && row < size.height - 0.5f)) {
                out[0] = out[count] = out[2 * count] = 0;
                continue;
            }
            const float left = std::floor(column), top = std::floor(row);
            float across[taps], down[taps];
            weigh<taps>(column - left, across);
            weigh<taps>(row - top, down);
            int64_t columns[taps], rows[taps];
            for (int tap = 0; tap < taps; ++tap) {
                columns[tap] = between(static_cast<int64_t>(left) + tap - (taps / 2 - 1), width - 1);
                rows[tap] = between(static_cast<int64_t>(top) + tap - (taps / 2 - 1), size.height - 1) * width;
            }
            for (int channel = 0; channel < 3; ++channel) {
                const uint8_t* plane = from + channel * count;
                float sum = 0;
                for (int down_tap = 0; down_tap < taps; ++down_tap) {
                    float of_row = 0;
                    for (int tap = 0; tap < taps; ++tap) of_row += across[tap] * plane[rows[down_tap] + columns[tap]];
                    sum += down[down_tap] * of_row;
                }
                out[channel * count] = to_byte(sum + 1e-3f);  // whole numbers stay, whichever way their sum is rounded
            }
        }
    }
}

inline void warp(const uint8_t* from, uint8_t* to, Size size, const float* matrix, int64_t how, Line line) {
    if (how == nearest) warp_nearest(from, to, size, matrix, line);
    if (how == bilinear) warp_between<2>(from, to, size, matrix, line);
    if (how == bicubic) warp_between<4>(from, to, size, matrix, line);
}

}  // namespace rlpheads
