// Winograd's F(4x4, 3x3) convolution (Lavin and Gray 2016) for channels-last fp32 images, stride 1, zero-padded by one: 4x4
// output pixels are computed from a tile of 6x6 input pixels with 36 multiplications per channel pair instead of 144.
//
// The 36 points of a tile are 36 matrix products over channels. A block of tiles is transformed, multiplied and collected at
// a time, so that it stays in the cache. Channel counts are multiples of LANES. Results do not depend on `threads`.

#include <algorithm>

#include "numbers.h"

namespace {

constexpr long SIDE = 6, OUT = 4, POINTS = SIDE * SIDE;  // a tile's rows, those of its output, and its points
constexpr long APART = 16;                               // floats between points, so that they share no set of a cache
constexpr long MOST = 4;                                 // maps side by side in each direction
constexpr long DEPTH = 128;                              // multiplied at a time: their panel stays in the first cache
constexpr long FORWARD_FLOATS = 400'000, GRADIENT_FLOATS = 2000'000;  // of a block's points and products
#ifdef __AVX512F__
constexpr long ROWS = 8, VECTORS = 2;  // of a product that the registers hold
#else
constexpr long ROWS = 4, VECTORS = 3;
#endif
constexpr long WIDTH = VECTORS * LANES;  // channels of a panel on the right of a product

long ceiling(long count, long size) { return (count + size - 1) / size; }

// Feature maps whose sides are no multiples of a tile's leave its last rows unused. So that fewer are, maps are laid side by side,
// `down` times `across` of them with a pixel of padding in between, and cut into tiles together.
struct Map {
    long n, h, w, channels, down = 1, across = 1;

    Map(long n, long h, long w, long channels) : n(n), h(h), w(w), channels(channels) {
        Map best = *this;
        for (down = 1; down <= MOST; ++down)
            for (across = 1; across <= MOST; ++across)
                if (tiles() < best.tiles()) best.down = down, best.across = across;
        down = best.down, across = best.across;
    }
    long rows() const { return ceiling(down * (h + 1) - 1, OUT); }
    long columns() const { return ceiling(across * (w + 1) - 1, OUT); }
    long tiles() const { return ceiling(n, down * across) * rows() * columns(); }

    // The pixels of a square of COUNT rows, which begins `before` pixels before its tile; those outside of a map are `none`.
    template <long COUNT, typename T> void find_pixels(T *images, long tile, long before, T *none, T *pixels[COUNT * COUNT]) const {
        const long column = tile % columns(), row = tile / columns() % rows(), first = tile / (columns() * rows()) * down * across;
        for (long i = 0; i < COUNT; ++i) {
            const long y = OUT * row + i - before;
            for (long j = 0; j < COUNT; ++j) {
                const long x = OUT * column + j - before, image = first + y / (h + 1) * across + x / (w + 1);
                const bool inside = y >= 0 && x >= 0 && y / (h + 1) < down && x / (w + 1) < across && image < n;
                const bool padding = y % (h + 1) == h || x % (w + 1) == w;
                const long pixel = (image * h + y % (h + 1)) * w + x % (w + 1);
                pixels[i * COUNT + j] = inside && !padding ? images + pixel * channels : none;
            }
        }
    }
};

// B' d of six numbers.
inline void input_points(const Lanes d[SIDE], Lanes v[SIDE]) {
    const Lanes even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1];
    const Lanes far = d[4] - d[2], twice = 2 * (d[3] - d[1]);
    v[0] = 4 * d[0] - 5 * d[2] + d[4];
    v[1] = even + odd;
    v[2] = even - odd;
    v[3] = far + twice;
    v[4] = far - twice;
    v[5] = 4 * d[1] - 5 * d[3] + d[5];
}

// A g of four output gradients.
inline void gradient_points(const Lanes g[OUT], Lanes v[SIDE]) {
    const Lanes even = g[0] + g[2], odd = g[1] + g[3];
    const Lanes far = g[0] + 4 * g[2], twice = 2 * g[1] + 8 * g[3];
    v[0] = g[0];
    v[1] = even + odd;
    v[2] = even - odd;
    v[3] = far + twice;
    v[4] = far - twice;
    v[5] = g[3];
}

// A' m of six products.
inline void outputs_of(const Lanes m[SIDE], Lanes out[OUT]) {
    const Lanes near = m[1] + m[2], across = m[1] - m[2], far = m[3] + m[4], beyond = m[3] - m[4];
    out[0] = m[0] + near + far;
    out[1] = across + 2 * beyond;
    out[2] = near + 4 * far;
    out[3] = across + 8 * beyond + m[5];
}

// G' m of six sums.
inline void filter_of(const Lanes m[SIDE], Lanes out[3]) {
    const Lanes near = m[1] + m[2], across = m[2] - m[1], far = m[3] + m[4], beyond = m[3] - m[4];
    out[0] = m[0] / 4 - near / 6 + far / 24;
    out[1] = across / 6 + beyond / 12;
    out[2] = (far - near) / 6 + m[5];
}

// The points of a tile of COUNT rows, `plane` floats apart; those of LANES channels lie together, the next ones `step` floats on.
template <long COUNT, typename Points>
void transform(const float *images, const Map &map, long tile, const float *zeros, Points points, float *to, long step, long plane) {
    const float *pixels[COUNT * COUNT];
    map.find_pixels<COUNT>(images, tile, (COUNT - OUT) / 2, zeros, pixels);
    for (long channel = 0; channel < map.channels; channel += LANES, to += step) {
        Lanes half[COUNT][SIDE];
        for (long j = 0; j < COUNT; ++j) {
            Lanes d[COUNT];
            for (long i = 0; i < COUNT; ++i) d[i] = load(pixels[i * COUNT + j] + channel);
            points(d, half[j]);
        }
        for (long i = 0; i < SIDE; ++i) {
            Lanes d[COUNT], v[SIDE];
            for (long j = 0; j < COUNT; ++j) d[j] = half[j][i];
            points(d, v);
            for (long j = 0; j < SIDE; ++j) store(to + (i * SIDE + j) * plane, v[j]);
        }
    }
}

// The outputs of a tile, of which products are `plane` floats apart.
void write_outputs(const float *products, long plane, float *const pixels[OUT * OUT]) {
    Lanes half[SIDE][OUT];
    for (long j = 0; j < SIDE; ++j) {
        Lanes m[SIDE];
        for (long i = 0; i < SIDE; ++i) m[i] = load(products + (i * SIDE + j) * plane);
        outputs_of(m, half[j]);
    }
    for (long i = 0; i < OUT; ++i) {
        Lanes m[SIDE], line[OUT];
        for (long j = 0; j < SIDE; ++j) m[j] = half[j][i];
        outputs_of(m, line);
        for (long j = 0; j < OUT; ++j) store(pixels[i * OUT + j], line[j]);
    }
}

// c[i][:] = the sum over `depth` numbers k of a[i][k] * b[k][:], added to c[i][:] or not, for ROWS rows i and V vectors. Rows
// of `a` are a_row floats apart, its numbers a_step; b's vectors b_next, its rows b_step; c's rows c_row.
template <bool ADD, long V>
void multiply(const float *a, long a_row, long a_step, const float *b, long b_next, long b_step, long depth, float *c, long c_row) {
    Lanes sums[ROWS][V];
    for (long i = 0; i < ROWS; ++i)
        for (long j = 0; j < V; ++j) sums[i][j] = ADD ? load(c + i * c_row + j * LANES) : Lanes{};
    for (long k = 0; k < depth; ++k, a += a_step, b += b_step) {
        Lanes panel[V];
        for (long j = 0; j < V; ++j) panel[j] = load(b + j * b_next);
        for (long i = 0; i < ROWS; ++i)
            for (long j = 0; j < V; ++j) sums[i][j] += panel[j] * a[i * a_row];
    }
    for (long i = 0; i < ROWS; ++i)
        for (long j = 0; j < V; ++j) store(c + i * c_row + j * LANES, sums[i][j]);
}

// The function for a panel of `width` channels.
template <bool ADD> auto multiplier(long width) {
    static_assert(VECTORS <= 3);
    return width == LANES ? multiply<ADD, 1> : width == 2 * LANES ? multiply<ADD, 2> : multiply<ADD, VECTORS>;
}

}  // namespace

extern "C" {

// Filters, with the given strides [outputs][inputs][3][3], to their points G g G' in panels of at most WIDTH outputs:
// [POINTS][panel][inputs][outputs of the panel].
void transform_filters(const float *filters, long output_stride, long input_stride, long row_stride, long column_stride,
                       float *points, long inputs, long outputs, long threads) {
    const long panels = ceiling(outputs, WIDTH);
    const auto rows = [](const float *g, long stride, float *to) {
        const float sides = g[0] + g[2 * stride], middle = g[stride];
        const float far = g[0] / 24 + g[2 * stride] / 6, near = middle / 12;
        to[0] = g[0] / 4;
        to[1] = -(sides + middle) / 6;
        to[2] = -(sides - middle) / 6;
        to[3] = far + near;
        to[4] = far - near;
        to[5] = g[2 * stride];
    };
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long part = 0; part < panels * inputs; ++part) {
        const long first = part / inputs * WIDTH, input = part % inputs, width = std::min(WIDTH, outputs - first);
        float line[POINTS][WIDTH];
        for (long k = 0; k < width; ++k) {
            const float *filter = filters + (first + k) * output_stride + input * input_stride;
            float half[3][SIDE], all[SIDE];
            for (long j = 0; j < 3; ++j) rows(filter + j * column_stride, row_stride, half[j]);
            for (long i = 0; i < SIDE; ++i) {
                rows(&half[0][i], SIDE, all);
                for (long j = 0; j < SIDE; ++j) line[i * SIDE + j][k] = all[j];
            }
        }
        for (long p = 0; p < POINTS; ++p)
            std::memcpy(points + (p * outputs + first) * inputs + input * width, line[p], width * sizeof(float));
    }
}

// Images [n][h][w][inputs] with the points of filters -> [n][h][w][outputs].
void convolve(const float *images, const float *filters, float *out, long n, long h, long w, long inputs, long outputs,
              long threads) {
    const Map map(n, h, w, inputs), out_map(n, h, w, outputs);
    const long tiles = map.tiles(), each = ceiling(tiles, threads);
    // Blocks of nearly the same size.
    const long most = std::clamp(FORWARD_FLOATS / (POINTS * (inputs + outputs)), 2 * ROWS, 48 * ROWS);
    const long block = ceiling(ceiling(each, ceiling(each, most)), ROWS) * ROWS;
    const long plane = block * inputs + APART, out_plane = block * outputs + APART;
#pragma omp parallel num_threads(threads)
    {
        const auto zeros = buffer<float>(inputs), unused = buffer<float>(outputs);
        const auto a = buffer<float>(POINTS * plane), products = buffer<float>(POINTS * out_plane);
        std::fill_n(zeros.get(), inputs, 0.0f);
        std::fill_n(a.get(), POINTS * plane, 0.0f);
#pragma omp for schedule(static)
        for (long first = 0; first < tiles; first += block) {
            const long count = std::min(block, tiles - first);
            for (long tile = 0; tile < count; ++tile)
                transform<SIDE>(images, map, first + tile, zeros.get(), input_points, &a[tile * inputs], LANES, plane);
            for (long p = 0; p < POINTS; ++p)
                for (long output = 0; output < outputs; output += WIDTH) {
                    const long width = std::min(WIDTH, outputs - output);
                    const float *panel = filters + (p * outputs + output) * inputs;
                    for (long k = 0; k < inputs; k += DEPTH)
                        for (long row = 0; row < count; row += ROWS)
                            (k ? multiplier<true> : multiplier<false>)(width)(
                                &a[p * plane + row * inputs + k], inputs, 1, panel + k * width, LANES, width,
                                std::min(DEPTH, inputs - k), &products[p * out_plane + row * outputs + output], outputs);
                }
            for (long tile = 0; tile < count; ++tile) {
                float *pixels[OUT * OUT];
                out_map.find_pixels<OUT>(out, first + tile, 0, unused.get(), pixels);
                for (long channel = 0; channel < outputs; channel += LANES) {
                    write_outputs(&products[tile * outputs + channel], out_plane, pixels);
                    for (float *&pixel : pixels) pixel += LANES;
                }
            }
        }
    }
}

// The gradient of the filters, with the given strides, from images [n][h][w][inputs] and the output's gradient.
void filter_gradient(const float *images, const float *gradient, float *filters, long output_stride, long input_stride,
                     long row_stride, long column_stride, long n, long h, long w, long inputs, long outputs, long threads) {
    const Map map(n, h, w, inputs), out_map(n, h, w, outputs);
    const long tiles = map.tiles(), panels = ceiling(inputs, WIDTH);
    const long block = std::clamp(GRADIENT_FLOATS / (POINTS * (inputs + outputs)), 64L, 512L);
    const long plane = block * inputs + APART, out_plane = block * outputs + APART, sum_plane = outputs * inputs + APART;
    const auto a = buffer<float>(POINTS * out_plane), b = buffer<float>(POINTS * plane);
    const auto sums = buffer<float>(POINTS * sum_plane), zeros = buffer<float>(std::max(inputs, outputs));
    std::fill_n(zeros.get(), std::max(inputs, outputs), 0.0f);
#pragma omp parallel num_threads(threads)
    {
        for (long first = 0; first < tiles; first += block) {
            const long count = std::min(block, tiles - first);
#pragma omp for schedule(static)
            for (long tile = 0; tile < count; ++tile) {
                float *left = &a[tile * LANES], *right = &b[tile * LANES];
                transform<OUT>(gradient, out_map, first + tile, zeros.get(), gradient_points, left, block * LANES, out_plane);
                transform<SIDE>(images, map, first + tile, zeros.get(), input_points, right, block * LANES, plane);
            }
#pragma omp for schedule(static)
            for (long part = 0; part < POINTS * panels; ++part) {
                const long p = part / panels, input = part % panels * WIDTH, width = std::min(WIDTH, inputs - input);
                for (long from = 0; from < count; from += DEPTH)
                    for (long output = 0; output < outputs; output += ROWS) {
                        const long start = output / LANES * LANES;
                        (first + from ? multiplier<true> : multiplier<false>)(width)(
                            &a[p * out_plane + start * block + from * LANES + output - start], 1, LANES,
                            &b[p * plane + input * block + from * LANES], block * LANES, LANES, std::min(DEPTH, count - from),
                            &sums[p * sum_plane + output * inputs + input], inputs);
                    }
            }
        }
#pragma omp for schedule(static)
        for (long output = 0; output < outputs; ++output)
            for (long input = 0; input < inputs; input += LANES) {
                Lanes half[3][SIDE];
                for (long j = 0; j < SIDE; ++j) {
                    Lanes m[SIDE], out[3];
                    for (long i = 0; i < SIDE; ++i) m[i] = load(&sums[(i * SIDE + j) * sum_plane + output * inputs + input]);
                    filter_of(m, out);
                    for (long i = 0; i < 3; ++i) half[i][j] = out[i];
                }
                float *filter = filters + output * output_stride + input * input_stride;
                for (long i = 0; i < 3; ++i) {
                    Lanes out[3];
                    filter_of(half[i], out);
                    for (long j = 0; j < 3; ++j) {
                        float *to = filter + i * row_stride + j * column_stride;
                        if (input_stride == 1)
                            store(to, out[j]);
                        else
                            for (long lane = 0; lane < LANES; ++lane) to[lane * input_stride] = out[j][lane];
                    }
                }
            }
    }
}
}
