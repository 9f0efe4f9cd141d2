// The gradient of a 3x3 convolution's filters (stride 1, zero-padded by one) for channels-last bf16 images, by AMX.
//
// For each of the nine offsets it is a matrix product over pixels: outputs x pixels times pixels x inputs. A tile of the
// left operand holds 16 outputs x 32 pixels, one of the right 16 pairs of pixels x 16 inputs. Pixels of a group of images
// are ordered by row, image and column: an offset in rows is then a number of whole tiles, and only the three offsets in
// columns need operands of their own. Sums are made in fp32. Channel counts are multiples of 32.

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "bf16.h"

namespace {

constexpr long TILE = 512, OFFSETS = 9;   // bf16 numbers of a tile; filter positions
constexpr long DEPTH = 8;                 // tiles over pixels whose operands stay in the first cache
constexpr long FEWEST_PIXELS = 512;       // of a group, so that sums are seldom taken up again
constexpr long SUMS_BYTES = 1800'000;    // of a slice's sums, which stay in the second cache

alignas(64) const bf16 ZEROS[32] = {};

// Images by groups; the pixels of a group are ordered by row, image and column.
struct Map {
    long n, h, w, group;
    long line() const { return group * w; }             // pixels of one row of all images of a group
    long steps() const { return line() * h / 32; }      // tiles over the pixels of a group
    long line_steps() const { return line() / 32; }     // tiles over one row
    long groups() const { return (n + group - 1) / group; }
    // Sixteen channels from `channel` of a pixel: row y, place `at` in the line, x columns to the right. Zero outside.
    const bf16 *pixel(const bf16 *images, long channels, long first, long y, long at, long x, long channel) const {
        const long image = first + at / w, column = at % w + x;
        if (image >= n || y < 0 || y >= h || column < 0 || column >= w) return ZEROS;
        return images + ((image * h + y) * w + column) * channels + channel;
    }
};

// Two pixels' sixteen channels side by side.
inline __m512i pair(const bf16 *even, const bf16 *odd) { return (__m512i)(load_words(even) | load_words(odd) << 16); }

inline void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// A group's gradient as left operands: [outputs / 16][steps][16 outputs][32 pixels].
void left_operands(const bf16 *gradient, const Map &map, long outputs, long first, bf16 *to) {
    for (long step = 0; step < map.steps(); ++step)
        for (long output = 0; output < outputs; output += LANES) {
            __m512i rows[16];
            for (long i = 0; i < 16; ++i) {
                const long k = 32 * step + 2 * i, y = k / map.line(), at = k % map.line();
                rows[i] = pair(map.pixel(gradient, outputs, first, y, at, 0, output),
                               map.pixel(gradient, outputs, first, y, at + 1, 0, output));
            }
            transpose(rows);
            bf16 *tile = to + (output / LANES * map.steps() + step) * TILE;
            for (long i = 0; i < 16; ++i) _mm512_store_si512(tile + 32 * i, rows[i]);
        }
}

// A slice of a group's images as right operands for the three offsets in columns, with a row of zeros at each end:
// [3][channels / 16][(h + 2) rows of tiles][16 pairs of pixels][16 inputs][2].
void right_operands(const bf16 *images, const Map &map, long inputs, long first, long begin, long channels, bf16 *to) {
    const long steps = (map.h + 2) * map.line_steps();
    for (long y = -1; y <= map.h; ++y)
        for (long at = 0; at < map.line(); at += 2)
            for (long x = -1; x <= 1; ++x) {
                const bf16 *even = map.pixel(images, inputs, first, y, at, x, begin);
                const bf16 *odd = map.pixel(images, inputs, first, y, at + 1, x, begin);
                const long even_step = even == ZEROS ? 0 : LANES, odd_step = odd == ZEROS ? 0 : LANES;
                bf16 *line = to + ((x + 1) * (channels / LANES) * steps + (y + 1) * map.line_steps()) * TILE + at * LANES;
                for (long c = 0; c < channels / LANES; ++c)
                    _mm512_store_si512(line + c * steps * TILE, pair(even + c * even_step, odd + c * odd_step));
            }
}

// Two by two tiles of sums, dense, += left times right over so many steps. A tile's neighbour in channels is `left_row` or
// `right_row` numbers away.
inline void multiply(const bf16 *left, long left_row, const bf16 *right, long right_row, long steps, float *sums, long sums_row) {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + 256, 64);
    _tile_loadd(2, sums + sums_row, 64);
    _tile_loadd(3, sums + sums_row + 256, 64);
    for (long k = 0; k < steps; ++k) {
        _tile_loadd(4, left + k * TILE, 64);
        _tile_loadd(6, right + k * TILE, 64);
        _tile_loadd(5, left + left_row + k * TILE, 64);
        _tile_loadd(7, right + right_row + k * TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + sums_row, 64);
    _tile_stored(3, sums + sums_row + 256, 64);
}

struct alignas(64) TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The fewest images whose rows fill whole tiles and are not too few pixels.
long group_size(long h, long w) {
    long group = 1;
    while (group * w % 32) group *= 2;
    while (group * h * w < FEWEST_PIXELS) group *= 2;
    return group;
}

// The widest slice of the inputs whose sums stay in the cache.
long slice_width(long inputs, long outputs) {
    long width = inputs;
    while (width * outputs * OFFSETS * 4 > SUMS_BYTES && width % 64 == 0) width /= 2;
    return width;
}

}  // namespace

extern "C" {

// Asks the system for leave to use the tiles; 0 where it gives it.
long prepare() { return syscall(SYS_arch_prctl, 0x1023, 18); }

// The filters' gradient, float with the given strides, from images [n][h][w][inputs] and the output's gradient
// [n][h][w][outputs]. Each thread sums over its own images; the threads' sums are added up in their order.
void filter_gradient(const bf16 *images, const bf16 *gradient, float *filters, long output_stride, long input_stride,
                     long row_stride, long column_stride, long n, long h, long w, long inputs, long outputs, long threads) {
    const Map map{n, h, w, group_size(h, w)};
    const long width = slice_width(inputs, outputs), slices = inputs / width;
    const long steps = map.steps(), padded = (h + 2) * map.line_steps(), groups = map.groups();
    const long left_size = outputs / LANES * steps * TILE, count = OFFSETS * inputs * outputs;
    threads = std::min(threads, groups);
    std::vector<Buffer<float>> sums(threads);
#pragma omp parallel num_threads(threads)
    {
        const TileShapes shapes;
        _tile_loadconfig(&shapes);
#pragma omp for schedule(static)
        for (long thread = 0; thread < threads; ++thread) {
            const long begin = groups * thread / threads, end = groups * (thread + 1) / threads;
            const long together = slices == 1 ? 1 : end - begin;  // groups whose left operands are kept
            const auto left = buffer<bf16>(together * left_size), right = buffer<bf16>(3 * width * padded * TILE / LANES);
            sums[thread] = buffer<float>(count);
            std::memset(sums[thread].get(), 0, count * sizeof(float));
            for (long from = begin; from < end; from += together) {
                for (long g = 0; g < together; ++g)
                    left_operands(gradient, map, outputs, (from + g) * map.group, &left[g * left_size]);
                for (long slice = 0; slice < slices; ++slice)
                    for (long g = 0; g < together; ++g) {
                        right_operands(images, map, inputs, (from + g) * map.group, slice * width, width, right.get());
                        for (long k = 0; k < steps; k += DEPTH)
                            for (long offset = 0; offset < OFFSETS; ++offset)
                                for (long c = 0; c < width / LANES; c += 2)
                                    for (long output = 0; output < outputs / LANES; output += 2)
                                        multiply(&left[g * left_size + (output * steps + k) * TILE], steps * TILE,
                                                 &right[((offset % 3 * (width / LANES) + c) * padded + offset / 3 * map.line_steps() + k) * TILE],
                                                 padded * TILE, std::min(DEPTH, steps - k),
                                                 &sums[thread][(((slice * OFFSETS + offset) * (outputs / LANES) + output) * (width / LANES) + c) * 256],
                                                 width / LANES * 256);
                    }
            }
        }
        _tile_release();
#pragma omp for schedule(static)
        for (long output = 0; output < outputs; ++output)
            for (long input = 0; input < inputs; ++input)
                for (long offset = 0; offset < OFFSETS; ++offset) {
                    const long slice = input / width, c = input % width;
                    const long at = (((slice * OFFSETS + offset) * (outputs / LANES) + output / LANES) * (width / LANES) + c / LANES) * 256 +
                                    output % LANES * LANES + c % LANES;
                    float sum = 0;
                    for (long thread = 0; thread < threads; ++thread) sum += sums[thread][at];
                    filters[output * output_stride + input * input_stride + offset / 3 * row_stride + offset % 3 * column_stride] = sum;
                }
    }
}
}
