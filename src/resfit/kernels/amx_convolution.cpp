// Convolutions k x k, k odd and zero-padded by k / 2, of channels-last bf16 images, and their gradients, by AMX.
//
// The rows of a tile are images, not neighbours in a map. Each place of a filter then meets whole tiles, and where it lies
// outside the map nothing is multiplied: of a 3x3 convolution's products that is a third at 4x4 pixels. Sums are made in
// fp32; channels and images that are missing from a tile are zeros.

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "bf16.h"

namespace {

constexpr long TILE = 512;              // bf16 numbers of a tile
constexpr long SUMS = 4 * 256;          // numbers of the four tiles of sums that are held at a time
constexpr long IMAGES = 32;             // two tiles' rows, or one tile's depth
constexpr long PIXELS = 32;             // whose sums are held at a time
constexpr long NEAR = 8;                // tiles whose operands stay in the first cache
constexpr long GROUP_BYTES = 1000'000;  // of operands, which stay in the second cache

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

inline void begin_sums(const float *sums, bool first) {
    if (first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, 64);
        _tile_loadd(1, sums + 256, 64);
        _tile_loadd(2, sums + 512, 64);
        _tile_loadd(3, sums + 768, 64);
    }
}

// The sums += two tiles of the left times two of the right.
inline void multiply(const bf16 *left, const bf16 *next_left, const bf16 *right, const bf16 *next_right) {
    _tile_loadd(4, left, 64);
    _tile_loadd(6, right, 64);
    _tile_loadd(5, next_left, 64);
    _tile_loadd(7, next_right, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

inline void end_sums(float *sums) {
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

// A convolution of n images [h][w][inputs] to maps [out_h][out_w][outputs].
struct Convolution {
    long n, h, w, inputs, outputs, kernel, stride;
    long out_h = (h - 1) / stride + 1, out_w = (w - 1) / stride + 1;
    long places = kernel * kernel, pad = kernel / 2;
};

// Which pixel of the source meets a pixel of the result at a place of the filter.
struct Meeting {
    long place, source, result;
};

// All meetings of an image and its map, by the result's pixels; with `back` the map is the source and the image the result.
// `begin` gets where those of each pixel begin.
std::vector<Meeting> meetings(const Convolution &c, bool back, std::vector<long> &begin) {
    std::vector<Meeting> found;
    const long h = back ? c.h : c.out_h, w = back ? c.w : c.out_w, source_h = back ? c.out_h : c.h, source_w = back ? c.out_w : c.w;
    for (long pixel = 0; pixel < h * w; ++pixel) {
        begin.push_back(found.size());
        for (long place = 0; place < c.places; ++place) {
            const long down = place / c.kernel - c.pad, right = place % c.kernel - c.pad;
            long y = back ? pixel / w - down : pixel / w * c.stride + down, x = back ? pixel % w - right : pixel % w * c.stride + right;
            if (back && (y % c.stride || x % c.stride)) continue;
            if (back) y /= c.stride, x /= c.stride;
            if (y >= 0 && x >= 0 && y < source_h && x < source_w) found.push_back({place, y * source_w + x, pixel});
        }
    }
    begin.push_back(found.size());
    return found;
}

// How a map's rows are cut into bands, which stand side by side in a tile as if they were images of their own: so that few
// images fill it as well, and large maps fit into the cache.
struct Bands {
    long count = 1, rows, source_rows, above = 0;  // the source's rows begin `above` the first that belongs to the band

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

// A band of a map in a tile: where its first pixel lies, or would, and which of its pixels there are.
struct Strip {
    long first = 0, begin = 0, end = 0;

    const bf16 *at(const bf16 *maps, long pixel, long channels) const { return maps + (first + pixel) * channels; }
    bool has(long pixel) const { return begin <= pixel && pixel < end; }
};

// The band of that number of n maps h x w, each of `bands`: so many rows from `step` times its place in the map, less `above`.
Strip cut(long number, long bands, long n, long h, long w, long rows, long step, long above) {
    const long map = number / bands, top = number % bands * step - above;
    return map < n ? Strip{(map * h + top) * w, std::max(0L, -top) * w, std::min(rows, h - top) * w} : Strip{};
}

}  // namespace

extern "C" {

// Asks the system for leave to use the tiles; 0 where it gives it.
long prepare() { return syscall(SYS_arch_prctl, 0x1023, 18); }

// The convolution of images with filters [outputs][kernel][kernel][inputs]: `source` are the images, `result` the maps. With
// `back` the gradient of the images: `source` is the maps' gradient.
void convolve(const bf16 *source, const bf16 *filters, bf16 *result, long n, long h, long w, long inputs, long outputs, long kernel,
              long stride, long back, long threads) {
    const Convolution c{n, h, w, inputs, outputs, kernel, stride};
    std::vector<long> begin;
    const std::vector<Meeting> all = meetings(c, back, begin);
    const long from_count = back ? outputs : inputs, to_count = back ? inputs : outputs;
    const long from_pixels = back ? c.out_h * c.out_w : h * w, to_pixels = back ? h * w : c.out_h * c.out_w;
    const long from_blocks = blocks(from_count, 32), to_blocks = blocks(to_count, 32);
    const long units = blocks(n, IMAGES) * to_blocks;
    const auto right = buffer<bf16>(to_blocks * from_blocks * c.places * 2 * TILE);  // [to_blocks][from_blocks][places][2][tile]
#pragma omp parallel num_threads(threads)
    {
        const TileShapes shapes;
        _tile_loadconfig(&shapes);
        const auto left = buffer<bf16>(from_blocks * from_pixels * 2 * TILE);  // [from_blocks][pixels][2][tile]
        const auto sums = buffer<float>(std::min(PIXELS, to_pixels) * SUMS);
#pragma omp for schedule(static)
        for (long tile = 0; tile < to_blocks * from_blocks * c.places * 2; ++tile) {
            const long to = tile / (from_blocks * c.places * 2) * 32 + tile % 2 * 16;
            const long from = tile / (c.places * 2) % from_blocks * 32, place = tile / 2 % c.places;
            const auto at = [&](long output, long input) { return filters + (output * c.places + place) * inputs + input; };
            __m512i rows[16];
            for (long i = 0; i < 16; ++i)
                if (back)
                    rows[i] = pair(at(from + 2 * i, to), at(from + 2 * i + 1, to), from + 2 * i < outputs ? inputs - to : 0,
                                   from + 2 * i + 1 < outputs ? inputs - to : 0);
                else
                    rows[i] = line(at(to + i, from), to + i < outputs ? inputs - from : 0);
            if (!back) transpose(rows);
            store_tile(&right[tile * TILE], rows);
        }
#pragma omp for schedule(static)
        for (long thread = 0; thread < threads; ++thread) {
            long laid_out = -1;
            for (long unit = units * thread / threads; unit < units * (thread + 1) / threads; ++unit) {
                const long first = unit / to_blocks * IMAGES, to = unit % to_blocks;
                if (first != laid_out)
                    for (long image = 0; image < IMAGES; ++image)
                        for (long pixel = 0; pixel < from_pixels; ++pixel)
                            for (long b = 0; b < from_blocks; ++b) {
                                const bf16 *numbers = source + ((first + image) * from_pixels + pixel) * from_count + b * 32;
                                _mm512_store_si512(&left[(b * from_pixels + pixel) * 2 * TILE + image * 32],
                                                   line(numbers, first + image < n ? from_count - b * 32 : 0));
                            }
                laid_out = first;
                for (long part = 0; part < blocks(to_pixels, PIXELS) * from_blocks; ++part) {
                    const long b = part % from_blocks, from = part / from_blocks * PIXELS;
                    for (long pixel = from; pixel < std::min(to_pixels, from + PIXELS); ++pixel) {
                        float *own = &sums[(pixel - from) * SUMS];
                        begin_sums(own, b == 0);
                        for (long m = begin[pixel]; m < begin[pixel + 1]; ++m) {
                            const bf16 *l = &left[(b * from_pixels + all[m].source) * 2 * TILE];
                            const bf16 *r = &right[((to * from_blocks + b) * c.places + all[m].place) * 2 * TILE];
                            multiply(l, l + TILE, r, r + TILE);
                        }
                        end_sums(own);
                        if (b + 1 < from_blocks) continue;
                        for (long image = 0; image < std::min(IMAGES, n - first); ++image) {
                            const float *sum = own + image / 16 * 512 + image % 16 * 16;
                            const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_load_ps(sum + 256), _mm512_load_ps(sum));
                            const long count = to_count - to * 32;
                            _mm512_mask_storeu_epi16(result + ((first + image) * to_pixels + pixel) * to_count + to * 32,
                                                     count >= 32 ? ~0u : (1u << count) - 1, (__m512i)both);
                        }
                    }
                }
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
    const Bands bands(c, threads);
    const long chunk_rows = std::max(1L, NEAR / c.out_w), chunks = blocks(bands.rows, chunk_rows);
    const long pixels = bands.rows * c.out_w, source_pixels = bands.source_rows * w;
    std::vector<Meeting> all;
    std::vector<long> begin;  // of each chunk's places
    std::vector<char> is_used(source_pixels);
    for (long chunk = 0; chunk < chunks; ++chunk)
        for (long place = 0; place < c.places; ++place) {
            begin.push_back(all.size());
            for (long pixel = chunk * chunk_rows * c.out_w; pixel < std::min(pixels, (chunk + 1) * chunk_rows * c.out_w); ++pixel) {
                const long y = pixel / c.out_w * stride + place / kernel - c.pad + bands.above, x = pixel % c.out_w * stride + place % kernel - c.pad;
                if (y < 0 || x < 0 || y >= bands.source_rows || x >= w) continue;
                all.push_back({place, y * w + x, pixel});
                is_used[y * w + x] = true;
            }
        }
    begin.push_back(all.size());

    const long tiles = blocks(n * bands.count, IMAGES), ins = blocks(inputs, 32), outs = blocks(outputs, 32);
    threads = std::min(threads, tiles);
    std::vector<Buffer<float>> sums(threads);  // [ins][outs][places][four tiles]
#pragma omp parallel num_threads(threads)
    {
        const TileShapes shapes;
        _tile_loadconfig(&shapes);
#pragma omp for schedule(static)
        for (long thread = 0; thread < threads; ++thread) {
            const long first = tiles * thread / threads, last = tiles * (thread + 1) / threads;
            const long most = std::clamp(GROUP_BYTES / (4 * TILE * std::max(source_pixels * ins, pixels * outs)), 1L, last - first);
            const auto left = buffer<bf16>(outs * 2 * most * pixels * TILE);          // [outs][2][tiles][pixels][tile]
            const auto right = buffer<bf16>(ins * 2 * most * source_pixels * TILE);  // likewise
            sums[thread] = buffer<float>(ins * outs * c.places * SUMS);
            for (long from = first; from < last; from += most) {
                const long group = std::min(most, last - from);
                for (long tile = 0; tile < group; ++tile) {
                    Strip maps[IMAGES], sources[IMAGES];
                    for (long i = 0; i < IMAGES; ++i) {
                        const long band = (from + tile) * IMAGES + i;
                        maps[i] = cut(band, bands.count, n, c.out_h, c.out_w, bands.rows, bands.rows, 0);
                        sources[i] = cut(band, bands.count, n, h, w, bands.source_rows, bands.rows * stride, bands.above);
                    }
                    for (long pixel = 0; pixel < pixels; ++pixel)
                        for (long o = 0; o < 2 * outs; ++o) {
                            __m512i rows[16];
                            for (long i = 0; i < 16; ++i)
                                rows[i] = pair(maps[2 * i].at(gradient, pixel, outputs) + o * 16, maps[2 * i + 1].at(gradient, pixel, outputs) + o * 16,
                                               maps[2 * i].has(pixel) ? outputs - o * 16 : 0, maps[2 * i + 1].has(pixel) ? outputs - o * 16 : 0);
                            transpose(rows);
                            store_tile(&left[((o * group + tile) * pixels + pixel) * TILE], rows);
                        }
                    for (long pixel = 0; pixel < source_pixels; ++pixel)
                        for (long i = 0; is_used[pixel] && i < 16; ++i) {
                            const bf16 *even = sources[2 * i].at(images, pixel, inputs), *odd = sources[2 * i + 1].at(images, pixel, inputs);
                            const bool has_even = sources[2 * i].has(pixel), has_odd = sources[2 * i + 1].has(pixel);
                            for (long b = 0; b < 2 * ins; ++b)
                                _mm512_store_si512(&right[((b * group + tile) * source_pixels + pixel) * TILE + i * 32],
                                                   pair(even + b * 16, odd + b * 16, has_even ? inputs - b * 16 : 0, has_odd ? inputs - b * 16 : 0));
                        }
                }
                for (long block = 0; block < ins * outs; ++block)
                    for (long part = 0; part < group * chunks; ++part)
                        for (long place = 0; place < c.places; ++place) {
                            const long tile = part / chunks, meeting = part % chunks * c.places + place;
                            float *own = &sums[thread][(block * c.places + place) * SUMS];
                            const bf16 *l = &left[(block % outs * 2 * group + tile) * pixels * TILE];
                            const bf16 *r = &right[(block / outs * 2 * group + tile) * source_pixels * TILE];
                            begin_sums(own, from == first && part == 0);
                            for (long m = begin[meeting]; m < begin[meeting + 1]; ++m) {
                                const bf16 *ll = l + all[m].result * TILE, *rr = r + all[m].source * TILE;
                                multiply(ll, ll + group * pixels * TILE, rr, rr + group * source_pixels * TILE);
                            }
                            end_sums(own);
                        }
            }
        }
        _tile_release();
#pragma omp for schedule(static)
        for (long output = 0; output < outputs; ++output)
            for (long place = 0; place < c.places; ++place)
                for (long input = 0; input < inputs; input += 16) {
                    const long block = input / 32 * outs + output / 32;
                    const long at = (block * c.places + place) * SUMS + output % 32 / 16 * 512 + input % 32 / 16 * 256 + output % 16 * 16;
                    Lanes sum = load(&sums[0][at]);
                    for (long thread = 1; thread < threads; ++thread) sum += load(&sums[thread][at]);
                    float *to = filters + output * output_stride + input * input_stride + place / kernel * row_stride + place % kernel * column_stride;
                    if (input_stride == 1 && inputs - input >= LANES)
                        store(to, sum);
                    else
                        for (long i = 0; i < std::min(LANES, inputs - input); ++i) to[i * input_stride] = sum[i];
                }
    }
}
}
