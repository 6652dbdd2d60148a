/* CRC-32 with zlib's polynomial: what a block's payload carries. */
#ifndef VICKREY_CRC_H
#define VICKREY_CRC_H

#include <stdint.h>

/* Same value as zlib's crc32(0, data, length). */
uint32_t crc32_of(const void *data, uint64_t length);

/* The same by tables alone, on machines without carry-less multiplication; apart so that a test can compare. */
uint32_t crc32_by_table(const void *data, uint64_t length);

#endif
