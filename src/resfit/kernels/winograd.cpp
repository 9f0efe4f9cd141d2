// Winograd's F(2x2, 3x3) convolution (Lavin and Gray 2016) for channels-last bf16 images, stride 1, zero-padded by one:
// 2x2 output pixels are computed from a tile of 4x4 input pixels with 16 multiplications per channel pair instead of 36.
//
// The sixteen points of a tile are sixteen matrix products over channels. Tiles are transformed and results collected a
// block at a time, so that they stay in the cache. Sums are fp32. Channel counts are multiples of 16. Requires AVX-512
// with the bf16 dot product. Results do not depend on `threads`.

#include <algorithm>

#include "numbers.h"

namespace {

constexpr long POINTS = 16, WIDTH = 64;  // points of a tile, channels of a panel

struct Map {
    long n, h, w;
    long rows() const { return (h + 1) / 2; }
    long columns() const { return (w + 1) / 2; }
    long tiles() const { return n * rows() * columns(); }
};

// B' d B of the tile's 4x4 input pixels, sixteen channels.
inline void input_points(const bf16 *images, const Map &map, long channels, long tile, long channel, Lanes v[POINTS]) {
    const long column = tile % map.columns(), row = tile / map.columns() % map.rows();
    const bf16 *image = images + tile / (map.columns() * map.rows()) * map.h * map.w * channels + channel;
    Lanes half[4][4];
    for (long j = 0; j < 4; ++j) {
        Lanes d[4];
        for (long i = 0; i < 4; ++i) {
            const long y = 2 * row + i - 1, x = 2 * column + j - 1;
            const bool inside = y >= 0 && y < map.h && x >= 0 && x < map.w;
            d[i] = inside ? load(image + (y * map.w + x) * channels) : Lanes{};
        }
        half[0][j] = d[0] - d[2];
        half[1][j] = d[1] + d[2];
        half[2][j] = d[2] - d[1];
        half[3][j] = d[1] - d[3];
    }
    for (long i = 0; i < 4; ++i) {
        v[4 * i] = half[i][0] - half[i][2];
        v[4 * i + 1] = half[i][1] + half[i][2];
        v[4 * i + 2] = half[i][2] - half[i][1];
        v[4 * i + 3] = half[i][1] - half[i][3];
    }
}

// A g A' of the tile's 2x2 output gradients, sixteen channels.
inline void gradient_points(const bf16 *images, const Map &map, long channels, long tile, long channel, Lanes m[POINTS]) {
    const long column = tile % map.columns(), row = tile / map.columns() % map.rows();
    const bf16 *image = images + tile / (map.columns() * map.rows()) * map.h * map.w * channels + channel;
    Lanes half[4][2];
    for (long j = 0; j < 2; ++j) {
        Lanes g[2];
        for (long i = 0; i < 2; ++i) {
            const long y = 2 * row + i, x = 2 * column + j;
            g[i] = y < map.h && x < map.w ? load(image + (y * map.w + x) * channels) : Lanes{};
        }
        half[0][j] = g[0];
        half[1][j] = g[0] + g[1];
        half[2][j] = g[0] - g[1];
        half[3][j] = -g[1];
    }
    for (long i = 0; i < 4; ++i) {
        m[4 * i] = half[i][0];
        m[4 * i + 1] = half[i][0] + half[i][1];
        m[4 * i + 2] = half[i][0] - half[i][1];
        m[4 * i + 3] = -half[i][1];
    }
}

// A' m A: the tile's 2x2 output pixels, sixteen channels. `points` of one tile are `plane` floats apart.
inline void write_output(bf16 *images, const Map &map, long channels, long tile, long channel, const float *points, long plane) {
    const long column = tile % map.columns(), row = tile / map.columns() % map.rows();
    bf16 *image = images + tile / (map.columns() * map.rows()) * map.h * map.w * channels + channel;
    Lanes half[2][4];
    for (long j = 0; j < 4; ++j) {
        Lanes m[4];
        for (long i = 0; i < 4; ++i) std::memcpy(&m[i], points + (4 * i + j) * plane, sizeof(Lanes));
        half[0][j] = m[0] + m[1] + m[2];
        half[1][j] = m[1] - m[2] - m[3];
    }
    for (long i = 0; i < 2 && 2 * row + i < map.h; ++i) {
        bf16 *to = image + ((2 * row + i) * map.w + 2 * column) * channels;
        store(to, half[i][0] + half[i][1] + half[i][2]);
        if (2 * column + 1 < map.w) store(to + channels, half[i][1] - half[i][2] - half[i][3]);
    }
}

inline __m512bh pairs(const void *from) { return (__m512bh)_mm512_loadu_si512(from); }

inline __m512bh broadcast(const bf16 *pair) {
    int32_t word;
    std::memcpy(&word, pair, sizeof word);
    return (__m512bh)_mm512_set1_epi32(word);
}

// c[i][:] (+)= the sum over `depth` pairs of a[i] times b, for ROWS rows and VECTORS vectors. Row i of a begins at a + i *
// a_row, its pairs are a_step apart; b's panel is dense, [depth][VECTORS * LANES][2]; rows of c are c_row floats apart.
template <int ROWS, int VECTORS, bool ADD>
inline void multiply(const bf16 *a, long a_row, long a_step, const bf16 *b, long depth, float *c, long c_row) {
    __m512 sums[ROWS][VECTORS];
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < VECTORS; ++j) sums[i][j] = ADD ? _mm512_loadu_ps(c + i * c_row + j * LANES) : _mm512_setzero_ps();
    for (long k = 0; k < depth; ++k) {
        __m512bh panel[VECTORS];
        for (int j = 0; j < VECTORS; ++j) panel[j] = pairs(b + (k * VECTORS + j) * 2 * LANES);
        for (int i = 0; i < ROWS; ++i) {
            const __m512bh row = broadcast(a + i * a_row + k * a_step);
            for (int j = 0; j < VECTORS; ++j) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], row, panel[j]);
        }
    }
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < VECTORS; ++j) _mm512_storeu_ps(c + i * c_row + j * LANES, sums[i][j]);
}

template <int ROWS, bool ADD>
inline void multiply(long vectors, const bf16 *a, long a_row, long a_step, const bf16 *b, long depth, float *c, long c_row) {
    switch (vectors) {
    case 1: return multiply<ROWS, 1, ADD>(a, a_row, a_step, b, depth, c, c_row);
    case 2: return multiply<ROWS, 2, ADD>(a, a_row, a_step, b, depth, c, c_row);
    case 3: return multiply<ROWS, 3, ADD>(a, a_row, a_step, b, depth, c, c_row);
    default: return multiply<ROWS, 4, ADD>(a, a_row, a_step, b, depth, c, c_row);
    }
}

}  // namespace

extern "C" {

// Filters, float with the given strides [outputs][inputs][3][3], to their points G g G' as panels of at most WIDTH outputs:
// bf16 [POINTS][panel][inputs / 2][outputs of the panel][2].
void transform_filters(const float *filters, long output_stride, long input_stride, long row_stride, long column_stride,
                       bf16 *points, long inputs, long outputs, long threads) {
    const long plane = inputs * outputs, panels = (outputs + WIDTH - 1) / WIDTH;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long part = 0; part < panels * (inputs / 2); ++part) {
        const long first = part / (inputs / 2) * WIDTH, pair = part % (inputs / 2);
        const long width = std::min(WIDTH, outputs - first);
        bf16 line[POINTS][2 * WIDTH];
        for (long k = 0; k < width; ++k)
            for (long c = 0; c < 2; ++c) {
                const float *filter = filters + (first + k) * output_stride + (2 * pair + c) * input_stride;
                float half[4][3];
                for (long j = 0; j < 3; ++j) {
                    const float *g = filter + j * column_stride;
                    const float top = g[0], middle = g[row_stride], bottom = g[2 * row_stride];
                    half[0][j] = top;
                    half[1][j] = (top + middle + bottom) / 2;
                    half[2][j] = (top - middle + bottom) / 2;
                    half[3][j] = bottom;
                }
                for (long i = 0; i < 4; ++i) {
                    const float left = half[i][0], middle = half[i][1], right = half[i][2];
                    const float row[4] = {left, (left + middle + right) / 2, (left - middle + right) / 2, right};
                    for (long j = 0; j < 4; ++j) {
                        uint32_t word;
                        std::memcpy(&word, &row[j], sizeof word);
                        line[4 * i + j][2 * k + c] = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
                    }
                }
            }
        for (long p = 0; p < POINTS; ++p)
            std::memcpy(points + p * plane + first * inputs + pair * 2 * width, line[p], 2 * width * sizeof(bf16));
    }
}

// Images [n][h][w][inputs] with the points of filters -> [n][h][w][outputs].
void convolve(const bf16 *images, const bf16 *filters, bf16 *out, long n, long h, long w, long inputs, long outputs,
              long threads) {
    constexpr int ROWS = 6;
    const Map map{n, h, w};
    const long tiles = map.tiles(), plane = inputs * outputs;
    // The block's points take up to 384 KiB of the second cache.
    const long block = std::clamp(12288 / inputs, 2L, 16L) * ROWS;
#pragma omp parallel num_threads(threads)
    {
        const auto a = buffer<bf16>(POINTS * block * inputs);
        const auto products = buffer<float>(POINTS * block * WIDTH);
        std::memset(a.get(), 0, POINTS * block * inputs * sizeof(bf16));
#pragma omp for schedule(static)
        for (long first = 0; first < tiles; first += block) {
            const long count = std::min(block, tiles - first), rows = (count + ROWS - 1) / ROWS * ROWS;
            for (long tile = 0; tile < count; ++tile)
                for (long channel = 0; channel < inputs; channel += LANES) {
                    Lanes v[POINTS];
                    input_points(images, map, inputs, first + tile, channel, v);
                    for (long p = 0; p < POINTS; ++p) store(&a[(p * block + tile) * inputs + channel], v[p]);
                }
            for (long output = 0; output < outputs; output += WIDTH) {
                const long width = std::min(WIDTH, outputs - output);
                for (long p = 0; p < POINTS; ++p)
                    for (long row = 0; row < rows; row += ROWS)
                        multiply<ROWS, false>(width / LANES, &a[(p * block + row) * inputs], inputs, 2,
                                              filters + p * plane + output * inputs, inputs / 2,
                                              &products[(p * block + row) * WIDTH], WIDTH);
                for (long tile = 0; tile < count; ++tile)
                    for (long channel = 0; channel < width; channel += LANES)
                        write_output(out, map, outputs, first + tile, output + channel, &products[tile * WIDTH + channel],
                                     block * WIDTH);
            }
        }
    }
}

// The gradient of the filters, float with the given strides, from images [n][h][w][inputs] and the output's gradient.
void filter_gradient(const bf16 *images, const bf16 *gradient, float *filters, long output_stride, long input_stride,
                     long row_stride, long column_stride, long n, long h, long w, long inputs, long outputs, long threads) {
    constexpr int ROWS = 4;
    constexpr long BLOCK = 512, DEPTH = 64;  // tiles transformed at a time; pairs of tiles whose panels stay in the first cache
    const Map map{n, h, w};
    const long tiles = map.tiles(), panels = (outputs + WIDTH - 1) / WIDTH;
    const auto a = buffer<bf16>(POINTS * BLOCK * inputs), b = buffer<bf16>(POINTS * BLOCK * outputs);
    const auto sums = buffer<float>(POINTS * inputs * outputs);
    std::memset(sums.get(), 0, POINTS * inputs * outputs * sizeof(float));

    // Points of a pair of tiles side by side, in panels of at most WIDTH channels: [POINTS][panel][pairs][channels][2].
    const auto transform = [&](auto points, const bf16 *source, long channels, long first, long pair, bf16 *to) {
        for (long channel = 0; channel < channels; channel += LANES) {
            Lanes even[POINTS], odd[POINTS] = {};
            points(source, map, channels, first + 2 * pair, channel, even);
            if (first + 2 * pair + 1 < tiles) points(source, map, channels, first + 2 * pair + 1, channel, odd);
            const long start = channel / WIDTH * WIDTH, width = std::min(WIDTH, channels - start);
            bf16 *panel = to + start * BLOCK + pair * 2 * width + 2 * (channel - start);
            for (long p = 0; p < POINTS; ++p) {
                const Words both = (rounded(even[p]) >> 16) | (rounded(odd[p]) & 0xffff0000);
                std::memcpy(panel + p * BLOCK * channels, &both, sizeof both);
            }
        }
    };
#pragma omp parallel num_threads(threads)
    {
        for (long first = 0; first < tiles; first += BLOCK) {
            const long pairs = (std::min(BLOCK, tiles - first) + 1) / 2;
#pragma omp for schedule(static)
            for (long pair = 0; pair < pairs; ++pair) {
                transform(input_points, images, inputs, first, pair, a.get());
                transform(gradient_points, gradient, outputs, first, pair, b.get());
            }
#pragma omp for schedule(static)
            for (long part = 0; part < POINTS * panels; ++part) {
                const long p = part / panels, output = part % panels * WIDTH, width = std::min(WIDTH, outputs - output);
                for (long from = 0; from < pairs; from += DEPTH) {
                    const long depth = std::min(DEPTH, pairs - from);
                    const bf16 *right = &b[p * BLOCK * outputs + output * BLOCK + from * 2 * width];
                    for (long input = 0; input < inputs; input += ROWS) {
                        const long start = input / WIDTH * WIDTH, rows = std::min(WIDTH, inputs - start);
                        const bf16 *left = &a[p * BLOCK * inputs + start * BLOCK + from * 2 * rows + 2 * (input - start)];
                        multiply<ROWS, true>(width / LANES, left, 2, 2 * rows, right, depth,
                                             &sums[(p * inputs + input) * outputs + output], outputs);
                    }
                }
            }
        }
        // G' m G
#pragma omp for schedule(static)
        for (long input = 0; input < inputs; ++input)
            for (long output = 0; output < outputs; ++output) {
                float half[3][4];
                for (long j = 0; j < 4; ++j) {
                    float m[4];
                    for (long i = 0; i < 4; ++i) m[i] = sums[((4 * i + j) * inputs + input) * outputs + output];
                    half[0][j] = m[0] + (m[1] + m[2]) / 2;
                    half[1][j] = (m[1] - m[2]) / 2;
                    half[2][j] = (m[1] + m[2]) / 2 + m[3];
                }
                float *filter = filters + output * output_stride + input * input_stride;
                for (long i = 0; i < 3; ++i) {
                    float *row = filter + i * row_stride;
                    row[0] = half[i][0] + (half[i][1] + half[i][2]) / 2;
                    row[column_stride] = (half[i][1] - half[i][2]) / 2;
                    row[2 * column_stride] = (half[i][1] + half[i][2]) / 2 + half[i][3];
                }
            }
    }
}
}
