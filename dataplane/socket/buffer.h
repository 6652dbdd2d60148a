/* Buffers that sockets are read into and written from: reference-counted buffers of two sizes out of pools mapped at start.
 *
 * The kernel reads to data + BUFFER_HEADROOM. The headroom takes a rewritten head (which is a little longer than the one
 * that it replaces) or a chunk's size line in front of bytes that stay where they were received: a message is forwarded
 * without being copied. The tail behind BUFFER_*_READ takes a chunk's end.
 */
#ifndef VICKREY_BLOCK_H
#define VICKREY_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BUFFER_HEADROOM 512
#define BUFFER_SMALL_READ 16384
#define BUFFER_SMALL_BYTES 20480             /* room for a whole rewritten head, HTTP_HEAD_MAX + 1024, too */
#define BUFFER_BULK_READ 32768
#define BUFFER_BULK_BYTES 36864

enum buffer_size { BUFFER_SMALL = 0, BUFFER_BULK = 1, BUFFER_SIZES = 2 };

struct buffer {
    struct buffer *next_free;
    char         *data;
    uint32_t      refs;
    uint16_t      id;                       /* within its pool */
    uint8_t       size;                     /* enum buffer_size */
    uint8_t       touched;                  /* its pages hold memory */
};

struct buffer_pool {
    struct buffer *buffers, *free;
    char         *memory;
    uint32_t      n, n_free;
    uint32_t      bytes;                    /* of one buffer */
};

/* Map pools of n buffers each; memory is taken as it is first used. 0 or -errno. */
int  buffer_pools_make(struct buffer_pool pools[BUFFER_SIZES], uint32_t n_small, uint32_t n_bulk);
void buffer_pools_free(struct buffer_pool pools[BUFFER_SIZES]);
/* Give memory of up to n free buffers back to the system, keeping the first keep of the free list warm. */
void buffer_pool_trim(struct buffer_pool *pool, uint32_t keep, uint32_t n);

static inline uint32_t buffer_bytes(const struct buffer *b)
{
    return b->size == BUFFER_SMALL ? BUFFER_SMALL_BYTES : BUFFER_BULK_BYTES;
}

/* A buffer with one reference, or NULL when the pool is empty. */
static inline struct buffer *buffer_take(struct buffer_pool *pool)
{
    struct buffer *b = pool->free;
    if (b) {
        pool->free = b->next_free;
        pool->n_free--;
        b->refs = 1;
        b->touched = 1;
    }
    return b;
}

static inline void buffer_ref(struct buffer *b)
{
    b->refs++;
}

static inline void buffer_drop(struct buffer_pool pools[BUFFER_SIZES], struct buffer *b)
{
    if (b && --b->refs == 0) {
        struct buffer_pool *pool = &pools[b->size];
        b->next_free = pool->free;
        pool->free = b;
        pool->n_free++;
    }
}

#endif
