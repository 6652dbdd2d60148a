/* Where everything in a segment lies, as a function of its limits alone: private to the segment's functions.
 *
 * The header repeats the offsets for those who attach; these functions compute them anew from the limits on every call and
 * compare, so that a header that was overwritten while in use is refused, not followed.
 */
#ifndef VICKREY_LAYOUT_H
#define VICKREY_LAYOUT_H

#include "access.h"

/* Fill size, offsets and strides of h from its limits. 0, or -EINVAL: limits out of range. */
int layout_fill(struct segment_header *h);

/* Copy the header at base and check that it agrees with its own limits. 0, or -SEGMENT_EBOUNDS. */
int layout_load(const void *base, struct segment_header *h);

/* Payload bytes that each buffer of a block holds, 0 when off_block is neither of the two blocks. */
uint64_t layout_capacity(const struct segment_header *h, uint64_t off_block);

/* Where buffer 0 or 1 of a block lies. */
static inline uint64_t layout_buffer(uint64_t off_block, uint64_t capacity, uint64_t index)
{
    return off_block + sizeof(struct block) + index * (sizeof(struct block_buffer) + capacity);
}

static inline void *layout_at(void *base, uint64_t offset)
{
    return (char *)base + offset;
}

static inline const void *layout_at_const(const void *base, uint64_t offset)
{
    return (const char *)base + offset;
}

#endif
