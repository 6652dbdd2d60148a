/* Scans over an array of keys: the least and the runner-up, and who holds it.
 *
 * A key is a bid as an ordered integer, KEY_NONE for a server that may not bid. Arrays are padded with KEY_NONE to a whole
 * number of SCAN_BLOCK keys and lie on a 64-byte boundary.
 */
#ifndef VICKREY_SCAN_H
#define VICKREY_SCAN_H

#include <stddef.h>
#include <stdint.h>

/* cdef:begin */
#define KEY_NONE 2147483647
#define SCAN_BLOCK 16

struct scan_least {
    int32_t least;                  /* KEY_NONE: nobody */
    int32_t second;                 /* of the others; equal to least when several hold it */
};

/* One implementation of the scans; padded: number of keys, a multiple of SCAN_BLOCK. All give the same results. */
struct scanner {
    const char *name;
    uint32_t wide;                  /* 1: this machine has AVX2 */
    struct scan_least (*two_least)(const int32_t *key, uint32_t padded);
    uint32_t (*count)(const int32_t *key, uint32_t padded, int32_t value);
    /* Index of the nth (from 0) key that equals value, which that many do. */
    uint32_t (*find)(const int32_t *key, uint32_t padded, int32_t value, uint32_t nth);
    /* Take step from each key; returns the least key then. */
    int32_t (*turn)(int32_t *key, const int32_t *step, uint32_t padded);
};

/* The best that this machine runs, and the portable one. */
const struct scanner *scanner_best(void);
const struct scanner *scanner_portable(void);
/* cdef:end */

#if defined(__x86_64__)
#define SCAN_AVX2 __attribute__((target("avx2,popcnt")))
#else
#define SCAN_AVX2
#endif

static inline uint32_t scan_padded(uint32_t n)
{
    return (n + SCAN_BLOCK - 1u) & ~(SCAN_BLOCK - 1u);
}

#endif
