/* The scans of an auction: portable, and with AVX2 where the machine has it; chosen when a balancer is made.
 *
 * A scan of 4 bytes a server was chosen over a tournament tree: a tree costs a walk at every change of a count, two to a flow,
 * and the scan of a thousand servers takes less than a tenth of a microsecond (benchmarks/dispatch.py).
 */
#include "scan.h"

static inline int32_t least_of(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static inline int32_t greatest_of(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

static struct scan_least portable_two_least(const int32_t *key, uint32_t padded)
{
    struct scan_least s = { .least = KEY_NONE, .second = KEY_NONE };
    for (uint32_t i = 0; i < padded; i++) {
        s.second = least_of(s.second, greatest_of(s.least, key[i]));
        s.least = least_of(s.least, key[i]);
    }
    return s;
}

static uint32_t portable_count(const int32_t *key, uint32_t padded, int32_t value)
{
    uint32_t equal = 0;
    for (uint32_t i = 0; i < padded; i++)
        equal += key[i] == value;
    return equal;
}

static uint32_t portable_find(const int32_t *key, uint32_t padded, int32_t value, uint32_t nth)
{
    for (uint32_t i = 0; i < padded; i++)
        if (key[i] == value && nth-- == 0)
            return i;
    return 0;
}

static int32_t portable_turn(int32_t *key, const int32_t *step, uint32_t padded)
{
    int32_t least = KEY_NONE;
    for (uint32_t i = 0; i < padded; i++) {
        key[i] -= step[i];
        least = least_of(least, key[i]);
    }
    return least;
}

static const struct scanner portable = {
    .name = "portable", .two_least = portable_two_least, .count = portable_count, .find = portable_find, .turn = portable_turn
};

const struct scanner *scanner_portable(void)
{
    return &portable;
}

#if defined(__x86_64__)
#include <immintrin.h>

/* Keep the two least of each lane, then of the lanes. */
SCAN_AVX2 static struct scan_least avx2_two_least(const int32_t *key, uint32_t padded)
{
    __m256i none = _mm256_set1_epi32(KEY_NONE), a1 = none, a2 = none, b1 = none, b2 = none;
    for (uint32_t i = 0; i < padded; i += 16) {
        __m256i a = _mm256_load_si256((const __m256i *)(const void *)(key + i));
        __m256i b = _mm256_load_si256((const __m256i *)(const void *)(key + i + 8));
        a2 = _mm256_min_epi32(a2, _mm256_max_epi32(a1, a));
        a1 = _mm256_min_epi32(a1, a);
        b2 = _mm256_min_epi32(b2, _mm256_max_epi32(b1, b));
        b1 = _mm256_min_epi32(b1, b);
    }
    a2 = _mm256_min_epi32(_mm256_min_epi32(a2, b2), _mm256_max_epi32(a1, b1));
    a1 = _mm256_min_epi32(a1, b1);
    __m128i x1 = _mm256_castsi256_si128(a1), y1 = _mm256_extracti128_si256(a1, 1);
    __m128i x2 = _mm_min_epi32(_mm256_castsi256_si128(a2), _mm256_extracti128_si256(a2, 1));
    x2 = _mm_min_epi32(x2, _mm_max_epi32(x1, y1));
    x1 = _mm_min_epi32(x1, y1);
    y1 = _mm_shuffle_epi32(x1, 0x4e);
    x2 = _mm_min_epi32(_mm_min_epi32(x2, _mm_shuffle_epi32(x2, 0x4e)), _mm_max_epi32(x1, y1));
    x1 = _mm_min_epi32(x1, y1);
    /* now lanes 0 and 1 hold disjoint halves, and 2 and 3 repeat them */
    y1 = _mm_shuffle_epi32(x1, 0xb1);
    x2 = _mm_min_epi32(_mm_min_epi32(x2, _mm_shuffle_epi32(x2, 0xb1)), _mm_max_epi32(x1, y1));
    x1 = _mm_min_epi32(x1, y1);
    return (struct scan_least){ .least = _mm_cvtsi128_si32(x1), .second = _mm_cvtsi128_si32(x2) };
}

/* Bit j: key i + j equals value, for j = 0 … 15. */
SCAN_AVX2 static inline uint32_t avx2_equal(const int32_t *key, __m256i value)
{
    __m256i a = _mm256_cmpeq_epi32(_mm256_load_si256((const __m256i *)(const void *)key), value);
    __m256i b = _mm256_cmpeq_epi32(_mm256_load_si256((const __m256i *)(const void *)(key + 8)), value);
    return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(a)) | (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(b)) << 8;
}

SCAN_AVX2 static uint32_t avx2_count(const int32_t *key, uint32_t padded, int32_t value)
{
    __m256i wanted = _mm256_set1_epi32(value);
    uint32_t equal = 0;
    for (uint32_t i = 0; i < padded; i += 16)
        equal += (uint32_t)__builtin_popcount(avx2_equal(key + i, wanted));
    return equal;
}

SCAN_AVX2 static uint32_t avx2_find(const int32_t *key, uint32_t padded, int32_t value, uint32_t nth)
{
    __m256i wanted = _mm256_set1_epi32(value);
    for (uint32_t i = 0; i < padded; i += 16) {
        uint32_t bits = avx2_equal(key + i, wanted), here = (uint32_t)__builtin_popcount(bits);
        if (nth >= here) {
            nth -= here;
            continue;
        }
        while (nth--)
            bits &= bits - 1;
        return i + (uint32_t)__builtin_ctz(bits);
    }
    return 0;
}

SCAN_AVX2 static int32_t avx2_turn(int32_t *key, const int32_t *step, uint32_t padded)
{
    __m256i least = _mm256_set1_epi32(KEY_NONE);
    for (uint32_t i = 0; i < padded; i += 8) {
        __m256i *at = (__m256i *)(void *)(key + i);
        __m256i now = _mm256_sub_epi32(_mm256_load_si256(at), _mm256_load_si256((const __m256i *)(const void *)(step + i)));
        _mm256_store_si256(at, now);
        least = _mm256_min_epi32(least, now);
    }
    __m128i half = _mm_min_epi32(_mm256_castsi256_si128(least), _mm256_extracti128_si256(least, 1));
    half = _mm_min_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_min_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

static const struct scanner avx2 = {
    .name = "avx2", .wide = 1, .two_least = avx2_two_least, .count = avx2_count, .find = avx2_find, .turn = avx2_turn
};

const struct scanner *scanner_best(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt") ? &avx2 : &portable;
}
#else
const struct scanner *scanner_best(void)
{
    return &portable;
}
#endif
