/* The pools of buffers: mapped whole at start, handed out last in, first out, so that a quiet worker stays in its cache. */
#include "buffer.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

static int pool_make(struct buffer_pool *pool, enum buffer_size size, uint32_t n, uint32_t bytes)
{
    *pool = (struct buffer_pool){.n = n, .n_free = n, .bytes = bytes};
    pool->buffers = calloc(n, sizeof *pool->buffers);
    if (!pool->buffers)
        return -ENOMEM;
    pool->memory = mmap(NULL, (size_t)n * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pool->memory == MAP_FAILED) {
        pool->memory = NULL;
        free(pool->buffers);
        pool->buffers = NULL;
        return -ENOMEM;
    }
    for (uint32_t i = n; i-- > 0;) {
        pool->buffers[i] = (struct buffer){.next_free = pool->free, .data = pool->memory + (size_t)i * bytes, .id = (uint16_t)i, .size = (uint8_t)size};
        pool->free = &pool->buffers[i];
    }
    return 0;
}

int buffer_pools_make(struct buffer_pool pools[BUFFER_SIZES], uint32_t n_small, uint32_t n_bulk)
{
    int error = pool_make(&pools[BUFFER_SMALL], BUFFER_SMALL, n_small, BUFFER_SMALL_BYTES);
    if (error)
        return error;
    error = pool_make(&pools[BUFFER_BULK], BUFFER_BULK, n_bulk, BUFFER_BULK_BYTES);
    if (error) {
        munmap(pools[BUFFER_SMALL].memory, (size_t)n_small * BUFFER_SMALL_BYTES);
        free(pools[BUFFER_SMALL].buffers);
    }
    return error;
}

void buffer_pools_free(struct buffer_pool pools[BUFFER_SIZES])
{
    for (int i = 0; i < BUFFER_SIZES; i++) {
        if (pools[i].memory)
            munmap(pools[i].memory, (size_t)pools[i].n * pools[i].bytes);
        free(pools[i].buffers);
        pools[i] = (struct buffer_pool){0};
    }
}

void buffer_pool_trim(struct buffer_pool *pool, uint32_t keep, uint32_t n)
{
    struct buffer *b = pool->free;
    for (uint32_t i = 0; b && i < keep; i++)
        b = b->next_free;
    for (; b && n > 0; b = b->next_free)
        if (b->touched) {
            madvise(b->data, pool->bytes, MADV_DONTNEED);
            b->touched = 0;
            n--;
        }
}
