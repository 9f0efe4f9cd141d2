// The gradient of a convolution's filters, k x k with k odd and zero-padded by k / 2, for channels-last bf16 images, by AMX.
//
// For each place in a filter it is a matrix product over pixels: outputs x pixels times pixels x inputs. A tile of the left
// operand holds 16 outputs x 32 pixels, one of the right 16 pairs of pixels x 16 inputs. Pixels of a group of images are
// ordered by row, image and column: places in a column of the filter then read the same operands, some whole tiles further
// on, and only its columns need operands of their own. Sums are made in fp32. Channel counts are multiples of 32.

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "bf16.h"

namespace {

constexpr long TILE = 512;                // bf16 numbers of a tile
constexpr long DEPTH = 8;                 // tiles over pixels whose operands stay in the first cache
constexpr long FEWEST_PIXELS = 512;       // of a group, so that sums are seldom taken up again
constexpr long SUMS_BYTES = 1800'000;    // of a slice's sums, which stay in the second cache

alignas(64) const bf16 ZEROS[32] = {};

// Images by groups. A line is one row of all images of a group.
struct Map {
    long n, h, w, kernel, stride;
    long out_h = (h - 1) / stride + 1, out_w = (w - 1) / stride + 1;
    long group = fewest_images();
    long pixels = group * out_w;  // of a line of the output
    long steps = pixels / 32;     // tiles over a line
    long all_steps = steps * out_h, groups = (n + group - 1) / group;

    // As many as make lines of whole tiles, and not too few pixels.
    long fewest_images() const {
        long images = 1;
        while (images * out_w % 32) images *= 2;
        while (images * out_h * out_w < FEWEST_PIXELS) images *= 2;
        return images;
    }
    // The lines of the images that the filter's row i is laid on: every stride-th of them from first_line(i) on. Rows that
    // are a multiple of the stride apart share theirs.
    long first_line(long i) const {
        long before = 0;
        for (long phase = 0; phase < i % stride; ++phase) before += lines(phase);
        return before + i / stride;
    }
    long lines(long phase) const { return out_h + (kernel - 1 - phase) / stride; }
    long all_lines() const {
        long sum = 0;
        for (long phase = 0; phase < std::min(stride, kernel); ++phase) sum += lines(phase);
        return sum;
    }
};

// Sixteen channels from `channel` of a pixel; zeros outside the images, [n][h][w][channels].
inline const bf16 *pixel(const bf16 *images, long n, long h, long w, long channels, long image, long y, long x, long channel) {
    if (image >= n || y < 0 || y >= h || x < 0 || x >= w) return ZEROS;
    return images + ((image * h + y) * w + x) * channels + channel;
}

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

// A group's gradient as left operands: [outputs / 16][all steps][16 outputs][32 pixels].
void left_operands(const bf16 *gradient, const Map &map, long outputs, long first, bf16 *to) {
    const auto place = [&](long y, long at, long output) {
        return pixel(gradient, map.n, map.out_h, map.out_w, outputs, first + at / map.out_w, y, at % map.out_w, output);
    };
    for (long step = 0; step < map.all_steps; ++step)
        for (long output = 0; output < outputs; output += LANES) {
            __m512i rows[16];
            for (long i = 0; i < 16; ++i) {
                const long y = step / map.steps, at = step % map.steps * 32 + 2 * i;
                rows[i] = pair(place(y, at, output), place(y, at + 1, output));
            }
            transpose(rows);
            bf16 *tile = to + (output / LANES * map.all_steps + step) * TILE;
            for (long i = 0; i < 16; ++i) _mm512_store_si512(tile + 32 * i, rows[i]);
        }
}

// A slice of a group's images as right operands for each column of the filter:
// [kernel][channels / 16][all lines][steps][16 pairs of pixels][16 inputs][2].
void right_operands(const bf16 *images, const Map &map, long inputs, long first, long begin, long channels, bf16 *to) {
    const auto place = [&](long y, long at, long column) {
        const long x = at % map.out_w * map.stride + column - map.kernel / 2;
        return pixel(images, map.n, map.h, map.w, inputs, first + at / map.out_w, y, x, begin);
    };
    const long size = map.all_lines() * map.steps * TILE;
    for (long phase = 0; phase < std::min(map.stride, map.kernel); ++phase)
        for (long line = 0; line < map.lines(phase); ++line) {
            const long y = line * map.stride + phase - map.kernel / 2;
            for (long at = 0; at < map.pixels; at += 2)
                for (long column = 0; column < map.kernel; ++column) {
                    const bf16 *even = place(y, at, column), *odd = place(y, at + 1, column);
                    const long even_step = even == ZEROS ? 0 : LANES, odd_step = odd == ZEROS ? 0 : LANES;
                    bf16 *pairs = to + column * (channels / LANES) * size + (map.first_line(phase) + line) * map.steps * TILE + at * LANES;
                    for (long c = 0; c < channels / LANES; ++c)
                        _mm512_store_si512(pairs + c * size, pair(even + c * even_step, odd + c * odd_step));
                }
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

// The widest slice of the inputs whose sums stay in the cache.
long slice_width(long inputs, long outputs, long places) {
    long width = inputs;
    while (width * outputs * places * 4 > SUMS_BYTES && width % 64 == 0) width /= 2;
    return width;
}

}  // namespace

extern "C" {

// Asks the system for leave to use the tiles; 0 where it gives it.
long prepare() { return syscall(SYS_arch_prctl, 0x1023, 18); }

// The filters' gradient, float with the given strides, from images [n][h][w][inputs] and the output's gradient
// [n][(h - 1) / stride + 1][(w - 1) / stride + 1][outputs]. Each thread sums over its own images; the threads' sums are
// added up in their order.
void filter_gradient(const bf16 *images, const bf16 *gradient, float *filters, long output_stride, long input_stride,
                     long row_stride, long column_stride, long n, long h, long w, long inputs, long outputs, long kernel,
                     long stride, long threads) {
    const Map map{n, h, w, kernel, stride};
    const long places = kernel * kernel, width = slice_width(inputs, outputs, places), slices = inputs / width;
    const long left_size = outputs / LANES * map.all_steps * TILE, right_size = map.all_lines() * map.steps * TILE;
    const long rows = outputs / LANES, columns = width / LANES;  // tiles of a slice's sums at one place of the filter
    threads = std::min(threads, map.groups);
    std::vector<Buffer<float>> sums(threads);
#pragma omp parallel num_threads(threads)
    {
        const TileShapes shapes;
        _tile_loadconfig(&shapes);
#pragma omp for schedule(static)
        for (long thread = 0; thread < threads; ++thread) {
            const long begin = map.groups * thread / threads, end = map.groups * (thread + 1) / threads;
            const long together = slices == 1 ? 1 : end - begin;  // groups whose left operands are kept
            const auto left = buffer<bf16>(together * left_size), right = buffer<bf16>(kernel * columns * right_size);
            sums[thread] = buffer<float>(places * inputs * outputs);
            std::memset(sums[thread].get(), 0, places * inputs * outputs * sizeof(float));
            for (long from = begin; from < end; from += together) {
                for (long g = 0; g < together; ++g)
                    left_operands(gradient, map, outputs, (from + g) * map.group, &left[g * left_size]);
                for (long part = 0; part < slices * together; ++part) {
                    const long slice = part / together, g = part % together;
                    right_operands(images, map, inputs, (from + g) * map.group, slice * width, width, right.get());
                    for (long k = 0; k < map.all_steps; k += DEPTH)
                        for (long place = 0; place < places; ++place) {
                            const long skipped = map.first_line(place / kernel) * map.steps;
                            for (long c = 0; c < columns; c += 2)
                                for (long row = 0; row < rows; row += 2)
                                    multiply(&left[g * left_size + (row * map.all_steps + k) * TILE], map.all_steps * TILE,
                                             &right[(place % kernel * columns + c) * right_size + (skipped + k) * TILE], right_size,
                                             std::min(DEPTH, map.all_steps - k),
                                             &sums[thread][(((slice * places + place) * rows + row) * columns + c) * 256],
                                             columns * 256);
                        }
                }
            }
        }
        _tile_release();
#pragma omp for schedule(static)
        for (long output = 0; output < outputs; ++output)
            for (long input = 0; input < inputs; ++input)
                for (long place = 0; place < places; ++place) {
                    const long tile = ((input / width * places + place) * rows + output / LANES) * columns + input % width / LANES;
                    float sum = 0;
                    for (long thread = 0; thread < threads; ++thread)
                        sum += sums[thread][tile * 256 + output % LANES * LANES + input % LANES];
                    filters[output * output_stride + input * input_stride + place / kernel * row_stride + place % kernel * column_stride] = sum;
                }
    }
}
}
