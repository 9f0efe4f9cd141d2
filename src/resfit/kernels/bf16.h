// Shared by the kernels: conversion of sixteen bf16 numbers to fp32 vectors and back, and aligned memory.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

constexpr long LANES = 16;

typedef uint16_t bf16;
typedef float Lanes __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

struct Free {
    void operator()(void *memory) const { std::free(memory); }
};
template <typename T> using Buffer = std::unique_ptr<T[], Free>;

template <typename T> Buffer<T> buffer(long count) {
    void *memory = std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
    if (!memory) {  // nothing can be thrown from here through OpenMP and Python
        std::fputs("error: out of memory in a kernel (train.batch_size): give a smaller one\n", stderr);
        std::_Exit(1);
    }
    return Buffer<T>(static_cast<T *>(memory));
}

inline Words load_words(const bf16 *from) {  // in one instruction, which the compiler doesn't make of a conversion
    return (Words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
}

inline Lanes load(const bf16 *from) { return (Lanes)(load_words(from) << 16); }

// The bits of the nearest bf16 (ties to even), in the upper half of each word.
inline Words rounded(Lanes value) {
    const Words words = (Words)value;
    return words + 0x7fff + ((words >> 16) & 1);
}

inline void store(bf16 *to, Lanes value) {
    const __m256bh halves = _mm512_cvtneps_pbh((__m512)value);
    std::memcpy(to, &halves, sizeof halves);
}

inline Lanes load(const float *from) {
    Lanes lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

inline void store(float *to, Lanes lanes) { std::memcpy(to, &lanes, sizeof lanes); }

// Asks for memory that will be read soon. It need not be there.
inline void fetch(const bf16 *soon) { _mm_prefetch(soon, _MM_HINT_T0); }
