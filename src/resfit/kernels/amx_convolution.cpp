// k x k convolutions, k odd, zero-padded by k / 2, of channels-last bf16 images, and their gradients, with AMX.
//
// If the rows of a tile were only neighbouring pixels of one feature map, tiles would be half empty for small maps.
// Instead, a tile takes columns of several images in a convolution, and only several images in the gradient of the
// filters. Sums are fp32; a tile is filled up with zeros where channels or images are missing.

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "numbers.h"

namespace {

constexpr long TILE = 512;              // bf16 numbers of a tile
constexpr long SUMS = 4 * 256;          // numbers of the four tiles of sums that are held at a time
constexpr long IMAGES = 32;             // of a tile's depth
constexpr long GROUP_BYTES = 1000'000;  // of operands, which stay in the second cache
constexpr long NEAR_NUMBERS = 400'000;  // of a laid out source, which stay in the second cache with the next one's
constexpr double FAR_BYTES = 3'500'000;  // of a laid out source that would take twice as long

long blocks(long count, long size) { return (count + size - 1) / size; }

// Up to 32 numbers, and zeros for the rest.
inline __m512i line(const bf16 *from, long count) {
    return _mm512_maskz_loadu_epi16(count >= 32 ? ~0u : (1u << std::max(count, 0L)) - 1, from);
}

// Up to 16 numbers of each of two lines side by side, and zeros for the rest.
inline __m512i pair(const bf16 *even, const bf16 *odd, long even_count, long odd_count) {
    const auto words = [](const bf16 *from, long count) {
        return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(count >= 16 ? 0xffff : (1u << std::max(count, 0L)) - 1, from));
    };
    return _mm512_or_si512(words(even, even_count), _mm512_slli_epi32(words(odd, odd_count), 16));
}

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

inline void store_tile(bf16 *to, const __m512i rows[16]) {
    for (long i = 0; i < 16; ++i) _mm512_store_si512(to + 32 * i, rows[i]);
}

inline void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

inline void load_sums(const float *sums) {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + 256, 64);
    _tile_loadd(2, sums + 512, 64);
    _tile_loadd(3, sums + 768, 64);
}

// The sums += two tiles of the left, whose rows lie so many bytes apart, times two of the right.
inline void multiply(const bf16 *left, const bf16 *next_left, const bf16 *right, const bf16 *next_right, long row_bytes = 64) {
    _tile_loadd(4, left, row_bytes);
    _tile_loadd(6, right, 64);
    _tile_loadd(5, next_left, row_bytes);
    _tile_loadd(7, next_right, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

inline void store_sums(float *sums) {
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
}

struct alignas(64) TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
const TileShapes SHAPES;  // in memory as a whole: a compiler may think that only its first bytes are read

// A convolution of n images [h][w][inputs] to maps [out_h][out_w][outputs].
struct Convolution {
    long n, h, w, inputs, outputs, kernel, stride;
    long out_h = (h - 1) / stride + 1, out_w = (w - 1) / stride + 1;
    long places = kernel * kernel, pad = kernel / 2;
};

struct Map {
    long h, w, channels;
    long pixels = h * w, blocks = ::blocks(channels, 32);
};

// What a line of results meets at a place of the filter: a line of the source's, which begins at a column of a row, and so
// many numbers into it.
struct Meeting {
    long place, row, column, first;
};

// Rows of the results of some images, and the rows of the source that they meet.
struct Unit {
    long image, images, top, end, source_top, source_end;
};

// From images to maps, or with `back` from the maps' gradient to that of the images.
//
// A line is a row's results of some images, of every `result_step`-th column: [columns][images]. The source is laid out
// likewise, with its columns by their remainder: [rows][remainders][columns][images][channels], and zeros to the left and
// right. What a line meets is then a line as well, that begins somewhere else.
struct Pass {
    Convolution c;
    bool back;
    long threads;
    Map image{c.h, c.w, c.inputs}, map{c.out_h, c.out_w, c.outputs};
    Map source = back ? map : image, result = back ? image : map;
    long source_step = back ? 1 : c.stride, result_step = back ? c.stride : 1;
    long halo = blocks(c.pad, c.stride), columns = blocks(source.w, source_step) + 2 * halo;
    long images = most_even();
    long line_rows = blocks(result.w, result_step) * images, column_size = images * source.blocks * 32;
    long row_size = source_step * columns * column_size;
    long chunks = std::min(result.h, std::max(blocks(2 * threads, blocks(c.n, images)), blocks(source.h * row_size, NEAR_NUMBERS)));
    long units = blocks(c.n, images) * chunks;

    // How many images fill tiles, occupy the threads and stay near best.
    long most_even() const {
        long best = 1;
        double least = 0;
        for (long n = 1; n <= std::min(32L, c.n); ++n) {
            long products = 0;
            for (long row = 0; row < blocks(result.w, result_step) * n; row += 32)
                for (long column = -halo; column <= halo; ++column) products += !is_outside(row, column, n);
            const double bytes = 64.0 * n * source.blocks * source.h * source_step * columns;
            const double cost = blocks(blocks(c.n, n) * result.h, threads) * products * (1 + bytes / FAR_BYTES);
            if (n == 1 || cost < least) least = cost, best = n;
        }
        return best;
    }

    // Whether two tiles of a line, from so many rows on, meet nothing but zeros in a line that begins at a column.
    bool is_outside(long row, long column, long images) const {
        return (row + 31) / images + column < 0 || row / images + column >= columns - 2 * halo;
    }

    Unit unit(long number) const {
        const long image = number / chunks * images, rows = blocks(result.h, chunks);
        const long top = std::min(result.h, number % chunks * rows), end = std::min(result.h, top + rows);
        const long above = back ? blocks(top - c.pad, c.stride) : top * c.stride - c.pad;
        const long below = back ? (end - 1 + c.pad) / c.stride : (end - 1) * c.stride + c.pad;
        return {image, std::min(images, c.n - image), top, end, std::max(0L, above), std::min(source.h, below + 1)};
    }

    std::vector<Meeting> meetings(long result_row, long column) const {
        std::vector<Meeting> found;
        for (long place = 0; place < c.places; ++place) {
            const long down = place / c.kernel - c.pad, right = place % c.kernel - c.pad;
            const long y = back ? result_row - down : result_row * c.stride + down, x = back ? column - right : right;
            if (back && (y % c.stride || x % c.stride)) continue;
            const long row = back ? y / c.stride : y, remainder = (x % source_step + source_step) % source_step;
            if (row < 0 || row >= source.h) continue;
            const long first = back ? x / c.stride : (x - remainder) / source_step;
            found.push_back({place, row, first, (remainder * columns + halo + first) * column_size});
        }
        return found;
    }
};

// Lays the source of a unit out, some pixels at a time; the zeros around it are there already.
struct Copy {
    const Pass &pass;
    const bf16 *from;
    const Unit unit;
    bf16 *to;
    long row = unit.source_top, image = 0, x = 0, done = 0;
    long pixels = std::max(0L, unit.source_end - unit.source_top) * unit.images * pass.source.w;

    Copy(const Pass &pass, const bf16 *from, const Unit &unit, bf16 *to) : pass(pass), from(from), unit(unit), to(to) {}

    void all() { until(pixels); }

    void until(long count) {
        const Map &map = pass.source;
        const long step = pass.source_step, whole = map.channels / 32 * 32, rest = map.channels - whole;
        for (; done < std::min(count, pixels); ++done) {
            const bf16 *pixel = from + (((unit.image + image) * map.h + row) * map.w + x) * map.channels;
            const long column = step == 1 ? x : x % step * pass.columns + x / step;
            bf16 *place = to + row * pass.row_size + ((pass.halo + column) * pass.images + image) * map.blocks * 32;
            for (long c = 0; c < whole; c += 32) _mm512_store_si512(place + c, _mm512_loadu_si512(pixel + c));
            if (rest) _mm512_store_si512(place + whole, line(pixel + whole, rest));
            if (++x < map.w) continue;
            x = 0;
            if (++image == unit.images) image = 0, ++row;
        }
    }
};

// A right operand: 16 pairs of the source's channels from `from` x 16 of the result's from `to`, at a place of the filters
// [outputs][places][inputs].
void lay_out_filters(const Pass &pass, const bf16 *filters, long place, long from, long to, bf16 *tile) {
    const Convolution &c = pass.c;
    const auto at = [&](long output, long input) { return filters + (output * c.places + place) * c.inputs + input; };
    __m512i rows[16];
    for (long i = 0; i < 16; ++i)
        if (pass.back) {
            const long even = from + 2 * i, odd = even + 1, count = c.inputs - to;
            rows[i] = pair(at(even, to), at(odd, to), even < c.outputs ? count : 0, odd < c.outputs ? count : 0);
        } else {
            rows[i] = line(at(to + i, from), to + i < c.outputs ? c.inputs - from : 0);
        }
    if (!pass.back) transpose(rows);
    store_tile(tile, rows);
}

// Rounds and stores the sums of the line that begins at `column`, from its `first` row on: up to 32 rows of up to 32
// channels, of so many images. `to` is the row of the first image.
void store_line(const Pass &pass, const float *sums, long column, long first, long channels, long images, bf16 *to) {
    const Map &map = pass.result;
    const __mmask32 mask = channels >= 32 ? ~0u : (1u << channels) - 1;
    long image = first % pass.images, x = column + first / pass.images * pass.result_step;
    for (long row = 0; row < 32 && x < map.w; ++row) {
        const float *sum = sums + row / 16 * 512 + row % 16 * 16;
        const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_load_ps(sum + 256), _mm512_load_ps(sum));
        if (image < images) _mm512_mask_storeu_epi16(to + (image * map.pixels + x) * map.channels, mask, (__m512i)both);
        if (++image == pass.images) image = 0, x += pass.result_step;
    }
}

// Which pixel of an image meets a pixel of the map at a place of the filter.
struct PixelMeeting {
    long source, result;
};

// How maps are cut into bands of rows, which stand side by side in a tile as if they were images of their own: so that few
// images fill it as well, and large maps fit into the cache. The source's rows of a band begin `above` its first.
struct Bands {
    long count = 1, rows, source_rows, above = 0;

    Bands(const Convolution &c, long threads) : rows(c.out_h), source_rows(c.h) {
        double least = 0;
        for (long n = 1; n <= c.out_h; ++n) {
            const long of_band = blocks(c.out_h, n);
            if (blocks(c.out_h, of_band) != n) continue;
            const long of_source = n == 1 ? c.h : (of_band - 1) * c.stride + c.kernel;
            const double bytes = 2.0 * IMAGES * (of_band * c.out_w * c.outputs + of_source * c.w * c.inputs);
            const double rounds = blocks(blocks(c.n * n, IMAGES), threads) * std::max(1.0, bytes / (2 * GROUP_BYTES));
            const double cost = rounds * (3 * of_band * c.out_w + of_source * c.w / c.stride);
            if (n > 1 && cost >= least) continue;
            least = cost, count = n, rows = of_band, source_rows = of_source, above = n == 1 ? 0 : c.pad;
        }
    }
};

// A band of maps [h][w][channels] in a tile: where its first pixel lies, or would, and which of its pixels there are.
struct Strip {
    long first = 0, begin = 0, end = 0;

    const bf16 *at(const bf16 *maps, long pixel, long channels) const { return maps + (first + pixel) * channels; }
    bool has(long pixel) const { return begin <= pixel && pixel < end; }
};

// A tile's strips, from the band of that number on: so many rows each, from `step` times its place in its map, less `above`.
struct Strips {
    Strip all[IMAGES];

    Strips(long number, long bands, long n, const Map &map, long rows, long step, long above) {
        for (long i = 0; i < IMAGES; ++i) {
            const long image = (number + i) / bands, top = (number + i) % bands * step - above;
            if (image >= n) continue;
            all[i] = {(image * map.h + top) * map.w, std::max(0L, -top) * map.w, std::min(rows, map.h - top) * map.w};
        }
    }
    // Sixteen channels from `channel` on of two strips' pixels, side by side.
    __m512i two(long i, const bf16 *maps, long pixel, long channels, long channel) const {
        const Strip &even = all[2 * i], &odd = all[2 * i + 1];
        const long count = channels - channel;
        return pair(even.at(maps, pixel, channels) + channel, odd.at(maps, pixel, channels) + channel,
                    even.has(pixel) ? count : 0, odd.has(pixel) ? count : 0);
    }
};

// The meetings within a band, by places; `begin` gets where those of each begin, and `is_used` which of the source's pixels
// there are among them.
std::vector<PixelMeeting> band_meetings(const Convolution &c, const Bands &bands, std::vector<long> &begin, std::vector<char> &is_used) {
    std::vector<PixelMeeting> found;
    is_used.resize(bands.source_rows * c.w);
    for (long place = 0; place < c.places; ++place) {
        begin.push_back(found.size());
        for (long row = 0; row < bands.rows; ++row)
            for (long column = 0; column < c.out_w; ++column) {
                const long y = row * c.stride + place / c.kernel - c.pad + bands.above;
                const long x = column * c.stride + place % c.kernel - c.pad;
                if (y < 0 || x < 0 || y >= bands.source_rows || x >= c.w) continue;
                found.push_back({y * c.w + x, row * c.out_w + column});
                is_used[y * c.w + x] = true;
            }
    }
    begin.push_back(found.size());
    return found;
}

}  // namespace

extern "C" {

// Asks the system for leave to use the tiles; 0 where it gives it.
long prepare() { return syscall(SYS_arch_prctl, 0x1023, 18); }

// The convolution of images with filters [outputs][kernel][kernel][inputs]: `source` are the images, `result` the maps. With
// `back` the gradient of the images: `source` is the maps' gradient.
void convolve(const bf16 *source, const bf16 *filters, bf16 *result, long n, long h, long w, long inputs, long outputs,
              long kernel, long stride, long back, long threads) {
    const Pass pass{{n, h, w, inputs, outputs, kernel, stride}, back != 0, threads};
    const Map &from = pass.source, &to = pass.result;
    const long places = pass.c.places, channels = from.blocks * 32;
    std::vector<std::vector<Meeting>> meetings;  // [lines]
    for (long line = 0; line < to.h * pass.result_step; ++line)
        meetings.push_back(pass.meetings(line / pass.result_step, line % pass.result_step));
    const auto right = buffer<bf16>(to.blocks * places * from.blocks * 2 * TILE);  // [to blocks][places][from blocks][2][tile]
#pragma omp parallel num_threads(threads)
    {
        _tile_loadconfig(&SHAPES);
        const long size = from.h * pass.row_size + 32 * channels;  // a line's last tile may end behind it
        const auto left = buffer<bf16>(2 * size);                  // of a unit and of the next
        std::memset(left.get(), 0, 2 * size * sizeof(bf16));
        const auto sums = buffer<float>(SUMS);
#pragma omp for schedule(static)
        for (long tile = 0; tile < to.blocks * places * from.blocks * 2; ++tile) {
            const long block = tile / 2 / from.blocks, first_to = block / places * 32 + tile % 2 * 16;
            lay_out_filters(pass, filters, block % places, tile / 2 % from.blocks * 32, first_to, &right[tile * TILE]);
        }
#pragma omp for schedule(static)
        for (long thread = 0; thread < threads; ++thread) {
            const long begin = pass.units * thread / threads, end = pass.units * (thread + 1) / threads;
            for (long number = begin; number < end; ++number) {
                bf16 *here = &left[number % 2 * size], *there = &left[(number + 1) % 2 * size];
                const Unit unit = pass.unit(number);
                if (number == begin) Copy(pass, source, unit, here).all();
                // Tiles are multiplied by a part of the processor that leaves the others free to lay the next unit out.
                Copy next(pass, source, number + 1 < end ? pass.unit(number + 1) : Unit{}, there);
                long all = 0, done = 0;
                for (long line = unit.top * pass.result_step; line < unit.end * pass.result_step; ++line)
                    all += to.blocks * blocks(pass.line_rows, 32) * meetings[line].size();
                const double share = double(next.pixels) / all;
                for (long block = 0; block < to.blocks; ++block)
                    for (long line = unit.top * pass.result_step; line < unit.end * pass.result_step; ++line)
                        for (long row = 0; row < pass.line_rows; row += 32) {
                            zero_sums();
                            for (const Meeting &m : meetings[line]) {
                                next.until(++done * share);
                                if (pass.is_outside(row, m.column, pass.images)) continue;
                                const bf16 *l = here + m.row * pass.row_size + m.first + row * channels;
                                const bf16 *r = &right[(block * places + m.place) * from.blocks * 2 * TILE];
                                for (long b = 0; b < from.blocks; ++b, l += 32, r += 2 * TILE)
                                    multiply(l, l + 16 * channels, r, r + TILE, channels * sizeof(bf16));
                            }
                            store_sums(sums.get());
                            bf16 *own = result + (unit.image * to.pixels + line / pass.result_step * to.w) * to.channels + block * 32;
                            store_line(pass, sums.get(), line % pass.result_step, row, to.channels - block * 32, unit.images, own);
                        }
                next.all();
            }
        }
        _tile_release();
    }
}

// The filters' gradient, float with the given strides, from images and the maps' gradient. Each thread sums over images of
// its own; the threads' sums are added up in their order.
void filter_gradient(const bf16 *images, const bf16 *gradient, float *filters, long output_stride, long input_stride,
                     long row_stride, long column_stride, long n, long h, long w, long inputs, long outputs, long kernel,
                     long stride, long threads) {
    const Convolution c{n, h, w, inputs, outputs, kernel, stride};
    const Map image{h, w, inputs}, map{c.out_h, c.out_w, outputs};
    const Bands bands(c, threads);
    const long pixels = bands.rows * c.out_w, source_pixels = bands.source_rows * w;
    std::vector<long> begin;
    std::vector<char> is_used;
    const std::vector<PixelMeeting> meetings = band_meetings(c, bands, begin, is_used);
    const long tiles = blocks(n * bands.count, IMAGES), ins = image.blocks, outs = map.blocks;
    threads = std::min(threads, tiles);
    std::vector<Buffer<float>> sums(threads);  // [ins][outs][places][four tiles]
#pragma omp parallel num_threads(threads)
    {
        _tile_loadconfig(&SHAPES);
#pragma omp for schedule(static)
        for (long thread = 0; thread < threads; ++thread) {
            const long first = tiles * thread / threads, last = tiles * (thread + 1) / threads;
            const long tile_bytes = 4 * TILE * std::max(source_pixels * ins, pixels * outs);
            const long most = std::clamp(GROUP_BYTES / tile_bytes, 1L, last - first);
            const auto left = buffer<bf16>(outs * 2 * most * pixels * TILE);         // [outs][2][tiles][pixels][tile]
            const auto right = buffer<bf16>(ins * 2 * most * source_pixels * TILE);  // likewise
            sums[thread] = buffer<float>(ins * outs * c.places * SUMS);
            for (long from = first; from < last; from += most) {
                const long group = std::min(most, last - from);
                const long next_left = group * pixels * TILE, next_right = group * source_pixels * TILE;
                for (long tile = 0; tile < group; ++tile) {
                    const long number = (from + tile) * IMAGES;
                    const Strips maps(number, bands.count, n, map, bands.rows, bands.rows, 0);
                    const Strips sources(number, bands.count, n, image, bands.source_rows, bands.rows * stride, bands.above);
                    __m512i rows[16];
                    for (long pixel = 0; pixel < pixels; ++pixel)
                        for (long o = 0; o < 2 * outs; ++o) {
                            for (long i = 0; i < 16; ++i) rows[i] = maps.two(i, gradient, pixel, outputs, o * 16);
                            transpose(rows);
                            store_tile(&left[o * next_left + (tile * pixels + pixel) * TILE], rows);
                        }
                    for (long pixel = 0; pixel < source_pixels; ++pixel)
                        for (long i = 0; is_used[pixel] && i < 16; ++i)
                            for (long b = 0; b < 2 * ins; ++b)
                                _mm512_store_si512(&right[b * next_right + (tile * source_pixels + pixel) * TILE + i * 32],
                                                   sources.two(i, images, pixel, inputs, b * 16));
                }
                for (long block = 0; block < ins * outs; ++block)
                    for (long tile = 0; tile < group; ++tile)
                        for (long place = 0; place < c.places; ++place) {
                            float *own = &sums[thread][(block * c.places + place) * SUMS];
                            const bf16 *l = &left[block % outs * 2 * next_left + tile * pixels * TILE];
                            const bf16 *r = &right[block / outs * 2 * next_right + tile * source_pixels * TILE];
                            from == first && tile == 0 ? zero_sums() : load_sums(own);
                            for (long m = begin[place]; m < begin[place + 1]; ++m) {
                                const bf16 *of_map = l + meetings[m].result * TILE, *of_image = r + meetings[m].source * TILE;
                                multiply(of_map, of_map + next_left, of_image, of_image + next_right);
                            }
                            store_sums(own);
                        }
            }
        }
        _tile_release();
#pragma omp for schedule(static)
        for (long output = 0; output < outputs; ++output)
            for (long place = 0; place < c.places; ++place)
                for (long input = 0; input < inputs; input += LANES) {
                    const long block = input / 32 * outs + output / 32, tile = output % 32 / 16 * 2 + input % 32 / 16;
                    const long at = (block * c.places + place) * SUMS + tile * 256 + output % 16 * LANES;
                    Lanes sum = load(&sums[0][at]);
                    for (long thread = 1; thread < threads; ++thread) sum += load(&sums[thread][at]);
                    float *to = filters + output * output_stride + input * input_stride;
                    to += place / kernel * row_stride + place % kernel * column_stride;
                    if (input_stride == 1 && inputs - input >= LANES)
                        store(to, sum);
                    else
                        for (long i = 0; i < std::min(LANES, inputs - input); ++i) to[i * input_stride] = sum[i];
                }
    }
}
}
