/* CRC-32 of a payload, at about the speed of copying it: by carry-less multiplication where the processor has it, else by tables.
 *
 * Tables: Kounavis and Berry, "A systematic approach to building high performance software-based CRC generators", ISCC 2005.
 * Folding: Gopal et al., "Fast CRC computation for generic polynomials using PCLMULQDQ", Intel 2009; the constants are
 * x^n mod P for the reflected polynomial 0xedb88320.
 */
#include "crc.h"

#include <pthread.h>
#include <string.h>

#define POLYNOMIAL 0xedb88320u

static uint32_t table[8][256];
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static void table_make(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1u ? POLYNOMIAL : 0u);
        table[0][byte] = crc;
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        for (int i = 1; i < 8; i++)
            table[i][byte] = table[i - 1][byte] >> 8 ^ table[0][table[i - 1][byte] & 255u];
}

/* Eight bytes a step. crc is inverted, as everywhere below. */
static uint32_t by_table(uint32_t crc, const uint8_t *p, uint64_t n)
{
    pthread_once(&table_once, table_make);
    for (; n >= 8; n -= 8, p += 8) {
        uint32_t low, high;
        memcpy(&low, p, 4);
        memcpy(&high, p + 4, 4);
        low ^= crc;
        crc = table[7][low & 255u] ^ table[6][low >> 8 & 255u] ^ table[5][low >> 16 & 255u] ^ table[4][low >> 24] ^
              table[3][high & 255u] ^ table[2][high >> 8 & 255u] ^ table[1][high >> 16 & 255u] ^ table[0][high >> 24];
    }
    for (; n > 0; n--, p++)
        crc = crc >> 8 ^ table[0][(crc ^ *p) & 255u];
    return crc;
}

#if defined(__x86_64__)
#include <immintrin.h>

#define CLMUL __attribute__((target("pclmul,sse4.1")))

/* Multiply both halves of x by k's and add the next block: moves x past as many bits as k stands for. */
CLMUL static __m128i fold(__m128i x, __m128i k, __m128i next)
{
    return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x, k, 0x00), _mm_clmulepi64_si128(x, k, 0x11)), next);
}

CLMUL static __m128i block_at(const uint8_t *p)
{
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}

/* n: a multiple of 16, at least 64. */
CLMUL static uint32_t by_folding(uint32_t crc, const uint8_t *p, uint64_t n)
{
    const __m128i by_512 = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4), by_128 = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0);
    const __m128i to_64 = _mm_set_epi64x(0, 0x0163cd6124), barrett = _mm_set_epi64x(0x01f7011641, 0x01db710641);
    const __m128i low_32 = _mm_set_epi32(0, -1, 0, -1);

    __m128i x0 = _mm_xor_si128(block_at(p), _mm_cvtsi32_si128((int)crc));
    __m128i x1 = block_at(p + 16), x2 = block_at(p + 32), x3 = block_at(p + 48);
    for (p += 64, n -= 64; n >= 64; p += 64, n -= 64) {
        x0 = fold(x0, by_512, block_at(p));
        x1 = fold(x1, by_512, block_at(p + 16));
        x2 = fold(x2, by_512, block_at(p + 32));
        x3 = fold(x3, by_512, block_at(p + 48));
    }
    __m128i x = fold(fold(fold(x0, by_128, x1), by_128, x2), by_128, x3);
    for (; n >= 16; p += 16, n -= 16)
        x = fold(x, by_128, block_at(p));

    x = _mm_xor_si128(_mm_srli_si128(x, 8), _mm_clmulepi64_si128(x, by_128, 0x10)); /* 128 bits to 96 */
    x = _mm_xor_si128(_mm_srli_si128(x, 4), _mm_clmulepi64_si128(_mm_and_si128(x, low_32), to_64, 0x00)); /* to 64 */
    __m128i t = _mm_and_si128(_mm_clmulepi64_si128(_mm_and_si128(x, low_32), barrett, 0x10), low_32);
    return (uint32_t)_mm_extract_epi32(_mm_xor_si128(x, _mm_clmulepi64_si128(t, barrett, 0x00)), 1);
}
#endif

uint32_t crc32_by_table(const void *data, uint64_t length)
{
    return ~by_table(~0u, data, length);
}

uint32_t crc32_of(const void *data, uint64_t length)
{
    const uint8_t *p = data;
    uint32_t crc = ~0u;
#if defined(__x86_64__)
    uint64_t folded = length & ~(uint64_t)15;
    if (folded >= 64 && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1")) {
        crc = by_folding(crc, p, folded);
        p += folded;
        length -= folded;
    }
#endif
    return ~by_table(crc, p, length);
}
